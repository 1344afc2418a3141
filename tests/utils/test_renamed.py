"""Old paths of modules: every one of the table gives the module of the new path, the same object, with a warning."""

import importlib
import importlib.abc
import importlib.util
import inspect
import runpy
import subprocess
import sys
import warnings

import pytest

import saferedir
from saferedir.utils.renamed import NEW_PATHS, OldAttribute, RenamedModules, new_path, old_argument


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
        old = saferedir.families  # type: ignore[attr-defined]
    from saferedir.pipelines import families
    from saferedir.utils import checks

    assert is_number is checks.is_number and old is families
    monkeypatch.setattr("saferedir.families.family_of", None)
    assert families.family_of is None


@pytest.mark.parametrize(("module", "old", "new"), [
    ("judges.registry", "Entry", "RegisteredJudge"),
    ("encoders.registry", "Entry", "RegisteredEncoder"),
    ("judges.images", "read_picture", "read_image_tensor"),
    ("judges.images", "picture_files", "image_files"),
    ("guards.negation.calibration", "Calibration", "KernelCalibration"),
    ("target", "Policy", "ProtectSettings"),
    ("target.policy", "Policy", "ProtectSettings"),
])  # fmt: skip
def test_a_renamed_function_or_class_is_still_found_by_its_old_name(module: str, old: str, new: str) -> None:
    home = importlib.import_module(f"saferedir.{module}")
    with pytest.warns(DeprecationWarning, match=new):
        assert getattr(home, old) is getattr(home, new)


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
        saferedir.nonsense  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("saferedir.nonsense")
    assert RenamedModules().find_spec("other.families") is None


def test_rooms_are_attributes_of_the_package() -> None:
    code = "import saferedir as sr; sr.errors.GuardError, sr.guards, sr.decisions.Decision; assert callable(sr.attach)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = saferedir.nothing  # type: ignore[attr-defined]


def test_an_old_path_can_be_run_and_read() -> None:
    """`python -m` and runpy ask a loader for code; inspect reads the source of the module that came."""
    from saferedir.pipelines import text_encoders
    from saferedir.utils import figures

    for old in ("saferedir.figures", "saferedir.text_towers"):
        _forgotten(old)
    with pytest.warns(DeprecationWarning, match=r"saferedir.figures has moved to saferedir.utils.figures; run it"):
        found = runpy.run_module("saferedir.figures", run_name="__main__")
    assert found["__name__"] == "__main__" and found["__doc__"] == figures.__doc__
    spec = importlib.util.find_spec("saferedir.text_towers")
    assert spec is not None and isinstance(spec.loader, importlib.abc.InspectLoader)
    assert spec.loader.get_source("saferedir.text_towers") == inspect.getsource(text_encoders)
    command = [sys.executable, "-W", "error::ImportWarning", "-m", "saferedir.names"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_old_attributes_and_arguments_give_the_new_ones_and_warn() -> None:
    class Row:
        new = 3
        old = OldAttribute("new")

    with pytest.warns(DeprecationWarning, match=r"Row.old is an old name; use Row.new."):
        assert Row().old == 3

    @old_argument("before", "after")
    def double(after: int) -> int:
        return 2 * after

    with pytest.warns(DeprecationWarning, match=r"double\(before=\) is an old name; write double\(after=\)."):
        assert double(before=4) == 8  # type: ignore[call-arg]
    assert double(5) == double(after=5) == 10
    with pytest.raises(TypeError, match="before"):
        double(before=4, after=4)  # type: ignore[call-arg]


def test_public_names_of_before_are_still_there() -> None:
    import torch

    from saferedir.bench.records import CellRecord, Cost, Protocol
    from saferedir.guards import registry
    from saferedir.guards.sld import SLD, SLDConfig
    from saferedir.metrics.preservation import over_refusal
    from saferedir.pipelines.families import FAMILIES, Family

    old = [
        (CellRecord, "drawings"),
        (Protocol, "draws"),
        (Cost, "pictures"),
        (Family, "towers"),
        (Family, "companions"),
    ]
    for owner, name in old:
        alias = vars(owner)[name]
        assert isinstance(alias, OldAttribute) and alias.new in owner.__dataclass_fields__  # type: ignore[attr-defined]
    family = FAMILIES["stable-diffusion"]
    with pytest.warns(DeprecationWarning):
        assert family.towers == family.text_encoder_facts
    guard = SLD(SLDConfig(concept="star"))
    for ask in (registry.may_be_unresolved, registry.always_acts):
        with pytest.warns(DeprecationWarning):
            assert ask(guard) is False
    blocked, acted = torch.tensor([True, False]), torch.tensor([True, True])
    with pytest.warns(DeprecationWarning):
        assert over_refusal(blocked, acted=acted) == over_refusal(blocked, intervened=acted)  # type: ignore[call-arg]


def test_arguments_of_before_are_still_taken() -> None:
    import torch

    from saferedir.metrics.forgetting import attack_success_rate
    from saferedir.target.soft_prompt import SoftPrompt

    positive, prompts = torch.tensor([False, True, False]), torch.tensor([0, 0, 1])
    with pytest.warns(DeprecationWarning, match=r"write attack_success_rate\(images_per_prompt=\)"):
        old = attack_success_rate(positive, prompts, draws=1)  # type: ignore[call-arg]
    assert old == attack_success_rate(positive, prompts, images_per_prompt=1) != attack_success_rate(positive, prompts)
    with pytest.warns(
        DeprecationWarning, match=r"SoftPrompt\(tower=\) is an old name; write SoftPrompt\(text_encoder=\)"
    ):
        prompt = SoftPrompt(torch.zeros(1, 2), torch.zeros(1, 2, 3), tower=1)  # type: ignore[call-arg]
    assert prompt.text_encoder == 1
