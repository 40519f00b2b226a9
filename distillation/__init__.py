"""How a model learns from soft labels: losses, learners, models, the student and its export. Knows no network."""
