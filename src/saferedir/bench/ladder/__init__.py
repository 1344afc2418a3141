"""The ladder: guards under attacks of every rung, a small JSON file a cell, and the page that is made of them.

plan.py reads which cells there are, cells.py runs those that are missing, page.py writes the page. `saferedir attack matrix` and
`saferedir attack results` are the way in.
"""
