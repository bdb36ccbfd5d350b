"""Pretraining and fine-tuning: the loop, a step, and what surrounds it."""
