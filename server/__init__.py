"""The coordinator: rounds, checks, quorum, teacher, student, checkpoints. Never imports what runs at a site."""
