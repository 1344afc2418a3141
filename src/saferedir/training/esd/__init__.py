"""Training of ESD's LoRA (arXiv:2303.07345): the loss, the student's own latents, and `train.py`."""
