"""Plan a large run on paper."""
