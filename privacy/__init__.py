"""What may leave a site. Imports nothing of ours."""
