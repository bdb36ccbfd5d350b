"""Turn videos into shards: probe, transcode, writer, executors, build; then verify and summary."""
