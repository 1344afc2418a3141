"""The inside of `protect`: the images of a pipeline's output, and the arguments of its call."""
