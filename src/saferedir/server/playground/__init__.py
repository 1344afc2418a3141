"""The page at `/` for people: a prompt, both images, what the guards did, and what was reported. Extra `playground` (Gradio)."""
