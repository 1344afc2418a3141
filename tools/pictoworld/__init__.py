"""Makes PictoWorld: its weights from scratch, the packaged guards that carry images, its quality report.

`python -m tools.pictoworld --help`. What a user needs of that world is in `saferedir.pictoworld`.
"""
