"""Evaluation on held-out shards: features once, then what is asked of them."""
