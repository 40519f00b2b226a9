"""Secure sums: a server that learns the sum of its clients' inputs, and no input.

Bonawitz et al. (2017), Practical Secure Aggregation for Privacy-Preserving Machine Learning. Nothing here sends, waits,
reads a clock or a file: `client` and `server` are steps from one state and one message to the next. README.md beside
this file says what is promised against whom, and how few exchanges a round takes.
"""
