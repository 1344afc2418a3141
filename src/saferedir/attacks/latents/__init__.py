"""Attacks that send latents, noise or a started image."""
