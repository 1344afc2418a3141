"""Storage: the bench folder, written whole or not at all, and read back as a cell needs it."""
