"""Training: what a method needs to make its guard: data, losses, the loop, thresholds. Inference is in `guards/`."""
