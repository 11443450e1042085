"""Training runs of a baseline and of arms, compared over seeds."""
