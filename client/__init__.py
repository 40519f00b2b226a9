"""Everything that runs at a site. Never imports the coordinator."""
