"""Judges: images in, raw scores out; rules and presets say what a score means."""

from saferedir.judges import verifiers as verifiers  # gives every judge its `verifier`
