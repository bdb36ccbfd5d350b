"""Loaders: batches of clips for training and evaluation."""
