"""Old paths of modules: every one of the table gives the module of the new path, the same object, with a warning."""

import importlib
import subprocess
import sys
import warnings

import pytest

import saferedir
from saferedir.utils.renamed import NEW_PATHS, RenamedModules, new_path


def _forgotten(name: str) -> None:
    sys.modules.pop(name, None)


#: modules of packages that moved as a whole, one of them new in the package
WITHIN = [f"bench.prompt_files.{name}" for name in ("cautions", "formats", "reading", "tables", "sets")] + [
    f"guards.saferedir.pairs.{name}"
    for name in ("build", "files", "lengths", "paraphrase", "plan", "templates", "text")
]


@pytest.mark.parametrize("old", [*NEW_PATHS, *WITHIN])
def test_an_old_path_is_the_same_module(old: str) -> None:
    path = new_path(old)
    new = importlib.import_module(f"saferedir.{path}")
    spec = new.__spec__
    _forgotten(f"saferedir.{old}")
    with pytest.warns(DeprecationWarning, match=f"saferedir.{old} has moved to saferedir.{path};"):
        found = importlib.import_module(f"saferedir.{old}")
    assert found is new and found.__spec__ is spec and found.__name__ == f"saferedir.{path}"
    assert sys.modules[f"saferedir.{old}"] is new


def test_new_paths_exist_and_old_ones_do_not() -> None:
    for old, new in NEW_PATHS.items():
        assert new not in NEW_PATHS, f"{old} would be redirected twice"


def test_the_warning_names_the_line_that_imports() -> None:
    _forgotten("saferedir.names")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        import saferedir.names  # noqa: F401
    assert [warning.filename for warning in caught] == [__file__]


def test_attributes_from_imports_and_patches_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("checks", "families"):
        vars(saferedir).pop(name, None)
        _forgotten(f"saferedir.{name}")
    with pytest.warns(DeprecationWarning):
        from saferedir.checks import is_number
    with pytest.warns(DeprecationWarning):
        old = saferedir.families
    from saferedir.pipelines import families
    from saferedir.utils import checks

    assert is_number is checks.is_number and old is families
    monkeypatch.setattr("saferedir.families.family_of", None)
    assert families.family_of is None


def test_modules_that_became_rooms_keep_their_names() -> None:
    from saferedir.guard import Guard
    from saferedir.guards import base
    from saferedir.pipelines import DTYPES, load_pipeline, loading
    from saferedir.prompts import ConceptPrompts, PromptItem, PromptSet, sets

    assert Guard is base.Guard is saferedir.Guard
    assert load_pipeline is loading.load_pipeline is saferedir.load_pipeline and DTYPES is loading.DTYPES
    assert (ConceptPrompts, PromptItem, PromptSet) == (sets.ConceptPrompts, sets.PromptItem, sets.PromptSet)


def test_unknown_names_are_still_unknown() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        saferedir.nonsense  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("saferedir.nonsense")
    assert RenamedModules().find_spec("other.families") is None


def test_rooms_are_attributes_of_the_package() -> None:
    code = "import saferedir as sr; sr.errors.GuardError, sr.guards, sr.decisions.Decision; assert callable(sr.attach)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = saferedir.nothing
