"""The bench: a matrix of models, guards, concepts and attacks, generated, judged, kept and reported.

planning/ reads the matrix and lists the work, generation/ makes the images of one shard, executors/ say where, storage/ keeps
them, evaluation/ turns scores into numbers, report/ makes the page; runner.py drives them all.
"""
