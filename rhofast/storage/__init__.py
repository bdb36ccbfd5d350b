"""Files, downloads and the node's cache: bytes on disks and behind addresses."""
