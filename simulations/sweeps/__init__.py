"""Many runs of one experiment over a grid of its settings: what they are, who runs them, what they came to."""
