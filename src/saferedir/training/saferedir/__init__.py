"""Training of SafeRedir's generalised redirector: dataset, losses, `train.py`, thresholds, and the prompt pairs in `pairs/`."""
