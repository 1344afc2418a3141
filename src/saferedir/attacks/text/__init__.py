"""Attacks that send a text a user could type."""
