"""PictoWorld 2: scenes of one or two objects, characters and posters, beside PictoWorld's scenes of one object."""
