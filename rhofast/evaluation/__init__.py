"""Evaluation of backbones on held-out shards: features, kNN, linear probe, multi-view test."""
