"""Guard folders, on disk and on the Hugging Face hub: `guard_config.json` + `model.safetensors` + `README.md`, and an image
verifier where there is one.

The method in the config picks the class.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from saferedir.errors import GuardConfigError, GuardNotFoundError
from saferedir.guards.config import GuardConfig
from saferedir.guards.image_verifier import ImageVerifier
from saferedir.guards.methods import class_of
from saferedir.utils.files import finite_json, replacing_folder, save_tensors, take_over
from saferedir.utils.locks import output_lock
from saferedir.utils.packaged import GUARD_CONFIG, library_version, list_packaged_guards, packaged_guard_path
from saferedir.utils.places import hub_id, missing_folder
from saferedir.utils.shared_files import CARD, VERIFIER_CONFIG, VERIFIER_WEIGHTS, WEIGHTS, first_with, shared_files

#: no code and no pickles are ever fetched
HUB_PATTERNS = ["*.json", "*.safetensors", "*.md"]


class Storable(Protocol):
    """What is asked of a guard here; `Guard`, which saves and loads itself with this file, is above it."""

    method: ClassVar[str]
    name: str
    image_verifier: ImageVerifier | None
    anchor_prompts: Mapping[str, str]
    config_class: ClassVar[type[GuardConfig]]

    @property
    def config(self) -> GuardConfig: ...

    def tensors(self) -> dict[str, Tensor]: ...

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...

    def card(self) -> str: ...


GuardT = TypeVar("GuardT", bound=Storable)


def save_guard(guard: Storable, directory: Path) -> Path:
    """Write the guard folder through a temporary sibling and a rename: a reader never finds half a guard.

    An existing guard folder of that name is replaced; any other non-empty folder is left alone with an error.
    Other files in a replaced guard folder stay.
    """
    if guard.anchor_prompts:
        raise GuardConfigError(
            f"this guard redirects to {next(iter(guard.anchor_prompts.values()))!r}, and an anchor is the policy's; save the "
            "guard without it."
        )
    directory = directory.absolute()
    if directory.exists() and any(directory.iterdir()) and not (directory / GUARD_CONFIG).is_file():
        raise GuardConfigError(f"{directory} is not empty and holds no guard; choose another folder to save to.")
    with output_lock(directory, nested=True) as folder, replacing_folder(folder) as fresh:
        record = {"method": guard.method, "version": library_version(), **_with_relative_files(guard.config, directory)}
        (fresh / GUARD_CONFIG).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        tensors = {name: value.detach().cpu().contiguous() for name, value in guard.tensors().items()}
        if tensors:
            save_tensors(tensors, fresh / WEIGHTS, {"format": "pt"})
        (fresh / CARD).write_text(guard.card(), encoding="utf-8")
        if guard.image_verifier is not None:
            guard.image_verifier.save(fresh)
        written_here = (GUARD_CONFIG, WEIGHTS, CARD, VERIFIER_CONFIG, VERIFIER_WEIGHTS)
        take_over(folder, fresh, without=written_here)  # whatever else the owner keeps there stays
    return directory


def load_guard(cls: type[GuardT], name: str | Path, force: bool = False) -> GuardT:
    """See `Guard.from_pretrained`."""
    folder = find_guard(name)
    try:
        record = finite_json((folder / GUARD_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GuardConfigError(f"cannot read {folder / GUARD_CONFIG}: {error}.") from error
    if not isinstance(record, dict) or not isinstance(record.get("method"), str):
        raise GuardConfigError(f'{folder / GUARD_CONFIG} has no "method"; it was not written by save_pretrained.')
    method = record.pop("method")
    record.pop("version", None)
    shared, left = shared_files(record, folder)
    guard_class: type[Any] = cls if cls.method == method else class_of(method)
    if not issubclass(guard_class, cls):
        raise GuardConfigError(
            f"{folder} holds a {guard_class.__name__}, not a {cls.__name__}; use Guard.from_pretrained."
        )
    config = guard_class.config_class.from_dict(_with_found_files(guard_class.config_class, record, folder))
    build: Any = guard_class  # a protocol has no constructor
    guard: GuardT = build(replace(config, backbone=None) if force else config)
    weights = first_with(WEIGHTS, folder, shared) / WEIGHTS
    is_there = weights.is_file()
    try:
        tensors = load_file(weights) if is_there else {}
        guard.load_tensors({name: value for name, value in tensors.items() if not name.startswith(left)})
    except SafetensorError as error:
        raise GuardConfigError(f"{weights} is damaged ({error}); download or train the guard again.") from error
    except GuardConfigError as error:
        if is_there or any(getattr(config, name) is not None for name in config.file_fields):
            raise
        raise GuardConfigError(f"{weights} is missing; copy the whole folder, or train the guard again.") from error
    guard.image_verifier = ImageVerifier.load(first_with(VERIFIER_CONFIG, folder, shared))
    if guard.image_verifier is not None and guard.image_verifier.config.concept != config.concept:
        raise GuardConfigError(
            f"the image verifier in {folder} is for {guard.image_verifier.config.concept!r}, the guard for {config.concept!r}; "
            "remove it, or train one for this guard."
        )
    guard.name = (
        Path(name).name if Path(name).expanduser().exists() else str(name)
    )  # no path of this machine in decisions
    return guard


def _with_relative_files(config: GuardConfig, directory: Path) -> dict[str, Any]:
    """A config as plain data, with the paths of its files relative to its folder, so that both can be moved together."""
    record = config.to_dict()
    for name in config.file_fields:
        if record[name] is not None:
            record[name] = _relative(Path(record[name]), directory)
    return record


def _relative(path: Path, directory: Path) -> str:
    path = path.expanduser().absolute()
    try:
        return Path(os.path.relpath(path.resolve(), directory.resolve())).as_posix()
    except ValueError:  # on another drive
        return str(path)


def _with_found_files(config_class: type[GuardConfig], record: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The inverse of `_with_relative_files`; a file that is not there is one sentence here, not in some later run."""
    files = {name: record[name] for name in config_class.file_fields if isinstance(record.get(name), str)}
    paths = {name: Path(os.path.normpath(folder.resolve() / value)) for name, value in files.items()}
    for name, path in paths.items():
        if not path.is_file():
            raise GuardNotFoundError(
                f"the guard in {folder} needs the file {path} ({name!r} in {GUARD_CONFIG}), which is not there; move or copy it "
                f"along with the folder, or write its place into {GUARD_CONFIG}."
            )
    return {**record, **{name: str(path) for name, path in paths.items()}}


def push_guard(guard: Storable, repo_id: str, **upload_kwargs: Any) -> str:
    """See `Guard.push_to_hub`."""
    from huggingface_hub import create_repo, upload_folder

    named = [str(path) for name in guard.config.file_fields if (path := getattr(guard.config, name)) is not None]
    if named:
        raise GuardConfigError(
            f"this guard's references stay in {' and '.join(named)}, which is not uploaded; make it with a smaller set, or hand "
            "on its folder together with that file."
        )
    with tempfile.TemporaryDirectory() as room:
        folder = save_guard(guard, Path(room) / "guard")
        create_repo(repo_id, exist_ok=True)
        return str(upload_folder(repo_id=repo_id, folder_path=folder, **upload_kwargs))


def find_guard(name: str | Path) -> Path:
    """Folder of a guard: packaged name, local folder, or hub id (downloaded), in this order.

    A path is never looked up on the hub, see `utils.places.hub_id`; "hf://owner/name" always is.
    """
    packaged = packaged_guard_path(str(name))
    if packaged is not None:
        return packaged
    folder = Path(name).expanduser()
    if (folder / GUARD_CONFIG).is_file():
        return folder
    known = ", ".join(list_packaged_guards()) or "none in this installation"
    repository = hub_id(name)
    if folder.exists() or repository is None or str(name).startswith("pictoworld/"):
        missing = missing_folder(name, GUARD_CONFIG, list_packaged_guards())
        raise GuardNotFoundError(
            f"no guard is called {str(name)!r} ({missing}): give a packaged one ({known}), a folder with {GUARD_CONFIG}, or a "
            "hub id, owner/name or hf://owner/name."
        )
    return _download(repository, known)


def _download(repo_id: str, known: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(repo_id, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the hub client raises many kinds, offline and not
        raise GuardNotFoundError(
            f"could not fetch guard {repo_id!r} from the Hugging Face hub ({type(error).__name__}), and "
            f"{missing_folder(repo_id, GUARD_CONFIG, list_packaged_guards())}; check the name and the network, or use a packaged "
            f"guard ({known})."
        ) from error
    if not (folder / GUARD_CONFIG).is_file():
        raise GuardNotFoundError(f"hub repository {repo_id!r} holds no {GUARD_CONFIG}, so it is not a guard.")
    return folder
