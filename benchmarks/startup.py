"""What starting costs: `import saferedir`, the command line's help and lists, as CPU time and as ratios within one run.

Each command is started several times in turn and its least CPU time is taken, which other work on the machine disturbs least.
`import saferedir` imports neither torch nor diffusers until a name is used; the pair below uses one.

    python benchmarks/startup.py            # half a minute
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence

CLI = "import sys; from saferedir.cli import app; app(sys.argv[1:])"
#: label -> arguments of python
COMMANDS: dict[str, tuple[str, ...]] = {
    "python -c pass": ("-c", "pass"),
    "import torch, diffusers": ("-c", "import torch; from diffusers import DiffusionPipeline"),
    "import saferedir": ("-c", "import saferedir"),
    "import saferedir, its names": ("-c", "import saferedir as sr; sr.attach, sr.protect, sr.Guard, sr.load_pipeline"),
    "the same and diffusers": (
        "-c",
        "import saferedir as sr; sr.attach, sr.Guard; from diffusers import DiffusionPipeline",
    ),
    "saferedir --help": ("-c", CLI, "--help"),
    "saferedir generate --help": ("-c", CLI, "generate", "--help"),
    "saferedir guards list": ("-c", CLI, "guards", "list"),
    "saferedir methods": ("-c", CLI, "methods"),
}


def cpu_seconds(arguments: Sequence[str]) -> float:
    """CPU time, user and system, of one process."""
    before = os.times()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    after = os.times()
    return (after.children_user - before.children_user) + (after.children_system - before.children_system)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    times: dict[str, list[float]] = {label: [] for label in COMMANDS}
    for _ in range(repeats):
        for label, arguments in COMMANDS.items():
            times[label].append(cpu_seconds(arguments))
    least = {label: min(values) for label, values in times.items()}
    bare, libraries = least["python -c pass"], least["import torch, diffusers"]
    print("| what | CPU, s | times `python -c pass` | times `import torch, diffusers` |\n|---|---|---|---|")
    for label, value in least.items():
        print(f"| {label} | {value:.3f} | {value / bare:.1f} | {value / libraries:.2f} |")


if __name__ == "__main__":
    main()
