"""Attacks propose, the bench judges: one attack, one file."""
