"""The shard format: the files of a shard set, and reading samples from them."""
