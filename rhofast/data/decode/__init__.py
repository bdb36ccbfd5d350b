"""Decode stored bytes to pixels on the device. No other package imports DALI."""
