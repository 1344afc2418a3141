"""Evaluation: from stored scores to every cell's numbers, without a model."""
