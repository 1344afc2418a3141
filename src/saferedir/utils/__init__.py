"""Small helpers that know nothing of guards or pipelines: files, locks, images, text files.

Any room may use them.
"""
