"""Checkpoints, run folders and exported weights."""
