"""What the README's numbers come from; each module runs alone and writes its own section."""
