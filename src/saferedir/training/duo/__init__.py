"""Training of DUO's LoRA (arXiv:2407.21035): synthesis of image pairs, the loss, and `train.py`."""
