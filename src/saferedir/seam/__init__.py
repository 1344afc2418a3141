"""The inside of `attach`: one guarded pipeline (seam.py), the hooks on it (hooks.py), the run it is in (current.py), one run as
its guards live it (session.py), calls into guards (consult.py) and what they edit (edits.py), extra rows (riding.py), rows of
guidance (rows.py) and the denoiser's arguments (denoiser_call.py); for guards that ask for them the prompts' texts (texts.py)
and a UNet's skip features (skip.py).

Private to attach.py; imports guard, decisions, families, schedules and errors. Start at seam.py.
"""
