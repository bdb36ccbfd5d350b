"""Training steps, checkpoints, scaling."""
