"""The inside of `attach`, private to it. Start at seam.py.

On the way of one step, in this order: hooks.py (what is on the live pipeline), seam.py (what is done at each moment), session.py
(one run as its guards live it), conditions.py (its conditioning), guard_calls.py (every call into a guard) and extra_rows.py.
Beside it: run_state.py (whose run it is), begin.py (facts of a run), caches.py, requirements.py and texts.py.
"""
