"""Attacks propose, the bench judges: one attack, one file. Imports prompts and errors only; see base.py, registry.py."""
