"""The audit trail: one record an image, each holding the hash of the one before, written before the image leaves."""
