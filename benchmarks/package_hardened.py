"""Puts a hardened guard together: a guard's folder with the decision rules, the tests of what a caller gives, and a verifier.

Run: python benchmarks/package_hardened.py --task emblem --guard runs/hardened/emblem-prompt --out runs/packaged/emblem-hardened
Weights and thresholds are the given guard's. Statistics of the text encoder are those of 400 forget and 400 retain prompts of the
training split and 1,024 random sequences; the image verifier is the packaged guard's where the given one has none.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.hardened_panel import SETTINGS, texts_of

import saferedir as sr
from saferedir.guards.saferedir import SafeRedir
from saferedir.pictoworld.tasks import TASKS
from saferedir.training.saferedir.manifold import measure_manifold


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", required=True, choices=list(TASKS))
    parser.add_argument("--guard", required=True)
    parser.add_argument("--settings", nargs="*", default=["rules", "inputs"], choices=list(SETTINGS))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    guard = SafeRedir.from_pretrained(options.guard)
    if guard.image_verifier is None:
        guard.image_verifier = SafeRedir.from_pretrained(f"pictoworld/{options.task}").image_verifier
    guard.manifold = measure_manifold(sr.load_pipeline("pictoworld"), texts_of(TASKS[options.task]), seed=41)
    changes = {name: value for setting in options.settings for name, value in SETTINGS[setting].items()}
    folder = guard.with_settings(**changes).save_pretrained(options.out)
    print(folder, float(guard.manifold.bound))


if __name__ == "__main__":
    main()
