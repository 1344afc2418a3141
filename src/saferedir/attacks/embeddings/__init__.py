"""Attacks that send token embeddings."""
