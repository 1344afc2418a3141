"""Small helpers that know nothing of guards or pipelines: files, locks, images, text files.

Imports the standard library, torch and Pillow, and `errors`. Any room may use them.
"""
