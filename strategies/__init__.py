"""What is exchanged: soft labels, messages, codecs, aggregators. Pure numpy; imports nothing of ours."""
