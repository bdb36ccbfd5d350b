"""Files that are written as a whole, downloads from object stores, and the cache of a node."""
