"""Judges of a built-in world are calibrated by the bench itself, because the truth about its images is known.

report/from_folder.py reads what is written here, and what `saferedir judge calibrate` writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from saferedir.bench.generation.resources import Resources
from saferedir.bench.generation.worlds import labelled_images, world_concept
from saferedir.bench.storage.saved_plan import SavedPlan
from saferedir.bench.storage.store import write_json
from saferedir.judges.calibration import calibrate
from saferedir.judges.rules import rule_from_dict

#: beside cells/ and images/
CALIBRATIONS = "calibrations"
#: images of each kind
IMAGES = 100


def calibrate_worlds(
    plan: SavedPlan, folder: Path, resources: Resources, on_step: Callable[[str], None] = lambda text: None
) -> None:
    """Calibrate every judge and rule of the plan's built-in concepts, each once; <folder>/calibrations/*.json."""
    for cell in plan.cells:
        concept = world_concept(cell.protocol.prompts)
        if concept is None:
            continue
        specs = {judge.key: judge for judge in plan.judges[cell.image_sets[0]]}
        rules = {cell.judge: cell.protocol.rule} | {second["judge"]: second["rule"] for second in cell.second.values()}
        for key, values in rules.items():
            path = folder / CALIBRATIONS / f"{concept.replace('/', '-')}.{key}.json"
            if path.is_file():
                continue
            on_step(f"calibrating {specs[key].name} for {cell.name.concept}")
            images, labels, source = labelled_images(concept, IMAGES)
            calibration = calibrate(resources.judge(specs[key]), rule_from_dict(values), images, labels, source=source)
            path.parent.mkdir(exist_ok=True)
            write_json(path, calibration.to_dict())
