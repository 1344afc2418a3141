"""Encoders: images, and with some also texts, to vectors that metrics compare. Base class: base.py; names: registry.py."""
