"""How videos become shards: probe, transcode, writer, executors, build; then verify and summary."""
