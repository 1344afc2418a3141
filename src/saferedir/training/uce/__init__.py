"""The closed form of UCE (arXiv:2308.14761): which layers read text, which tokens count, the solution, and `train.py`."""
