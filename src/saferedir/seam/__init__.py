"""The inside of `attach`: hooks on one live pipeline (hooks.py), one run as its guards live it (session.py), calls into guards
(consult.py), rows of guidance (rows.py) and the denoiser's arguments (denoiser_call.py); for guards that ask for them the
prompts' texts (texts.py) and a UNet's skip features (skip.py).

Private to attach.py; imports guard, decisions, families, schedules and errors. Start at hooks.py.
"""
