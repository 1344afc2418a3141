"""Attacks propose, a runner judges: one attack, one file, under the channel it is sent through (text, embeddings, latents).

The contract is base.py, the runner run.py, what a run leaves behind record.py; names: registry.py, and catalogue.py for people.
How to attack one's own guarded model: docs/attacks.md.
"""
