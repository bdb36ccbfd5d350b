"""rhofast: self-supervised video pretraining through time, built around its data path."""

__version__ = "0.1.0"
