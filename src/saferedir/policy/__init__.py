"""The inside of `protect`: policy files, the images of a pipeline's output, the arguments of its call."""
