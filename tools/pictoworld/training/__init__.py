"""Trains the PictoWorld model from scratch: one file a part (autoencoder, text encoder, denoiser, judge), one loop.

Start at run.py for the order of the stages.
"""
