"""From a word to training pairs: templates, synonyms, captions, paraphrases. Start at build.py; no pipeline in here."""
