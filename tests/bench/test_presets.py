"""The matrix files of the library: they can be read, and every name in them is known."""

import tomllib
from pathlib import Path

import pytest

from saferedir.attacks.registry import ATTACKS
from saferedir.bench.planning.config import PRESETS, matrix_path, preset_names, read_matrix
from saferedir.bench.report.published import tables
from saferedir.errors import BenchError
from saferedir.guard import GuardConfig
from saferedir.guards.registry import guard_class
from saferedir.judges.presets import preset
from saferedir.judges.registry import judge_class
from saferedir.pictoworld.methods import METHODS, ORDER
from saferedir.pictoworld.tasks import TASKS
from saferedir.pictoworld.world2.evaluation import FLUX_CALL
from saferedir.pictoworld.world2.methods import METHODS as METHODS2
from saferedir.pictoworld.world2.methods import STACKS
from saferedir.pictoworld.world2.tasks import task_names
from saferedir.prompts.formats import FORMATS, find
from saferedir.utils.packaged import list_packaged_guards

PUBLISHED = [name for name in preset_names() if not name.startswith(("pictoworld", "world2"))]


def given(name: str) -> dict[str, str]:
    needs = tomllib.loads(matrix_path(name).read_text(encoding="utf-8")).get("needs", {})
    return {need: "church" if need == "object" else f"given-{need}" for need in needs}


@pytest.mark.parametrize("name", preset_names())
def test_every_name_in_a_preset_is_known(name: str) -> None:
    matrix = read_matrix(name, given(name))
    assert matrix.title and matrix.description and set(matrix.attacks) <= set(ATTACKS)
    for concept in matrix.concept.values():
        for judge in (concept.judge, *concept.second_judges):
            assert judge.preset is not None and judge.name in preset(judge.preset).judges
            assert judge_class(judge.name)
        files = [concept.forget, concept.retain, concept.look_alikes, *concept.rephrased.values()]
        for entry in files:
            assert entry is None or find(entry.format)[0]
    for guard in matrix.guard.values():
        if guard.method is not None:
            settings = dict(guard.config)
            kind = guard_class(guard.method).config_class
            named = settings.pop("preset", None)
            made = kind.preset(named, **settings) if named else kind.from_dict(settings)  # type: ignore[attr-defined]
            assert isinstance(made, GuardConfig)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_protocols_bring_no_weights_and_no_prompts(name: str) -> None:
    with pytest.raises(BenchError, match=r"--with model=…"):
        read_matrix(name)
    text = (PRESETS / f"{name}.toml").read_text(encoding="utf-8")
    for need in given(name):
        assert "${" + need + "}" in text
    assert read_matrix(name, given(name)).model["sd"].load == "given-model"


def test_the_pictoworld_presets_hold_every_guard() -> None:
    full, quick = read_matrix("pictoworld-full"), read_matrix("pictoworld-quick")
    assert set(full.guard) == set(ORDER) - {"none"}
    assert set(full.guard) - set(quick.guard) == {"dual-latent-25", "dual-latent-75", "nag-strong"}
    assert {guard.recipe for guard in full.guard.values() if guard.recipe} == {f"pictoworld/{name}" for name in METHODS}
    assert quick.prompts.forget == quick.prompts.rephrased == quick.prompts.retain == 14
    for matrix in (full, quick):
        assert set(matrix.concept) == set(TASKS)
        for name, guard in matrix.guard.items():
            for concept in guard.concepts or TASKS:
                if guard.load:
                    assert guard.load.replace("{concept}", concept) in list_packaged_guards(), name


def test_the_presets_of_the_second_world_serve_its_tasks_with_its_recipes() -> None:
    full, quick = read_matrix("world2-full"), read_matrix("world2-quick")
    assert set(full.concept) == set(task_names("flux")) - {"characters-20"} > set(quick.concept)
    assert {guard.recipe for guard in full.guard.values() if guard.recipe} == {f"world2/{n}" for n in METHODS2} - {
        "world2/nag-strong"
    }
    assert {name for name, guard in full.guard.items() if guard.stack} == set(STACKS)
    for matrix in (full, quick):
        call = matrix.model["pictoworld-flux"].call
        assert {name: call[name] for name in FLUX_CALL} == dict(FLUX_CALL)


def test_the_page_names_every_preset_format_and_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text(encoding="utf-8")
    for name in (*preset_names(), *FORMATS, *(table.name for table in tables())):
        assert f"`{name}`" in page, name
    for sha1 in (sha1 for entry in FORMATS.values() for sha1 in entry.fingerprints):
        assert sha1 in page
