"""The shard format: what a shard set is, and reading it."""
