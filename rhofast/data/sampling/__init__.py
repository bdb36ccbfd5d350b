"""Plan batches as numbers: which samples, clips and augmentations they consist of. Only numpy is imported."""
