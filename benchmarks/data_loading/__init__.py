"""Loading, ingest and decoding."""
