"""Which samples, clips and augmentations a batch consists of: numbers only, numpy only."""
