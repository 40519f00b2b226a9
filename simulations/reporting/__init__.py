"""A run's results, as numbers, a terminal's table and a page."""
