"""Planning: from a TOML file to cells and the sets of images that they need; whatever can be wrong is found here."""
