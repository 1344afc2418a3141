"""The bench: a matrix of models, guards, concepts and attacks, drawn, judged, kept and reported.

config.py reads the matrix, plan.py says what must be drawn, drawing.py draws, store.py keeps, runner.py drives an executor,
cells.py turns scores into numbers, report/ makes the page. May import everything below `cli` and `server`.
"""
