"""From encoded bytes to pixels on the device: the only modules that import DALI."""
