"""Makes PictoWorld 2: its judge, its three pipelines and their quality reports."""
