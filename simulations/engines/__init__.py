"""How a round's plans reach the sites of a simulation."""
