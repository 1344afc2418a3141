"""Judges: images in, raw scores out; rules and presets say what a score means."""
