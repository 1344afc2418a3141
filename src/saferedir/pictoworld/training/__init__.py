"""Trains the PictoWorld model from scratch: one file a part (autoencoder, text encoder, denoiser, judge), one loop.

Imports pictoworld's own files, torch, diffusers and transformers. Start at run.py for the order of the stages.
"""
