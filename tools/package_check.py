"""Builds wheel and sdist, installs the wheel into an empty environment, and runs `saferedir demo` there.

Run: python -m tools.package_check           # installs every dependency of the core, within constraints.txt
     python -m tools.package_check --shared  # borrows this environment's packages: quick, and needs no network
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: a file of each kind that the package must bring
NEEDED = (
    "saferedir/py.typed", "saferedir/pictoworld/weights/pipeline/model_index.json", "saferedir/server/default.toml",
    "saferedir/server/playground/page.css", "saferedir/server/playground/fragments.html.j2",
    "saferedir/server/evidence/page.html.j2", "saferedir/bench/presets/pictoworld-quick.toml",
)  # fmt: skip


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """What a command prints; its whole output on standard error where it fails."""
    answer = subprocess.run([str(word) for word in words], capture_output=True, text=True, cwd=cwd, check=False)
    if answer.returncode:
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{answer.stdout}{answer.stderr}")
    return answer.stdout


def build(out: Path) -> tuple[Path, Path]:
    """(wheel, sdist) in `out`, by the build backend itself."""
    code = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"
    with tempfile.TemporaryDirectory() as folder:  # a copy, so that no build folder is left in the tree
        tree = Path(folder) / "tree"
        run("git", "clone", "-q", ROOT, tree)
        for kind in ("build_sdist", "build_wheel"):
            run(sys.executable, "-c", code, kind, out, cwd=tree)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


def missing(wheel: Path, sdist: Path) -> list[str]:
    """Files that wheel or sdist should have and do not."""
    in_wheel = set(zipfile.ZipFile(wheel).namelist())
    with tarfile.open(sdist) as file:
        in_sdist = {name.partition("/")[2] for name in file.getnames()}
    return [name for name in NEEDED if name not in in_wheel or f"src/{name}" not in in_sdist]


def install(wheel: Path, folder: Path, shared: bool) -> Path:
    """The command `saferedir` of an environment that has nothing else of ours."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "-q")
    if shared:
        site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        names = sysconfig.get_path("purelib")
        # behind the environment's own packages, and without the editable install's finder
        (site / "zz_shared.pth").write_text(f"import sys; sys.path.append({names!r})\n", encoding="utf-8")
        run(*pip, "--no-deps", "--no-index", wheel)
    else:
        run(*pip, "-c", ROOT / "constraints.txt", wheel)
    return folder / "bin" / "saferedir"


def check(work: Path, shared: bool) -> str:
    """Do all of it in a folder; where the package was imported from."""
    wheel, sdist = build(work / "dist")
    if lost := missing(wheel, sdist):
        raise SystemExit(f"not in the packages: {', '.join(lost)}")
    command = install(wheel, work / "env", shared)
    place = run(
        work / "env" / "bin" / "python", "-I", "-c", "import saferedir; print(saferedir.__file__)", cwd=work
    ).strip()
    if not place.startswith(str(work)):
        raise SystemExit(f"saferedir was imported from {place}, not from the wheel")
    run(command, "demo", "--prompts", "1", "--steps", "2", "--out", work / "demo", cwd=work)
    if not (work / "demo" / "grid.png").is_file():
        raise SystemExit("the demo wrote no grid.png")
    return place


def main() -> None:
    """Say what was done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", action="store_true", help="borrow this environment's packages")
    with tempfile.TemporaryDirectory() as folder:
        place = check(Path(folder).resolve(), parser.parse_args().shared)
    sys.stdout.write(
        f"wheel and sdist built; the wheel's saferedir ran the demo ({Path(place).name} of its own environment)\n"
    )


if __name__ == "__main__":
    main()
