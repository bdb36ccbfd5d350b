"""Turn shards into batches of clips.

In reading order: `types` (the values that flow), `sources` (opens the shard sets of a run), `format` (shards, indices
and their reader), `codecs` (how videos are stored), `sampling` (order, clips and augmentation), `decode` (pixels on the
device) and `loader` (the threads that connect them).
"""
