"""What a bench leaves behind: one `CellRecord` a cell, small enough to read in review. Plain data; imports errors only.

Rule zero: a number belongs to a protocol (prompts, n, judge and preset, attack, sampler settings, seeds). Tables are keyed by
`Protocol.id`; two protocols never share a column. Numbers of papers (`published.py`) never share a table with measured ones.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from saferedir.bench.schema import SCHEMA, read_record
from saferedir.errors import BenchError
from saferedir.utils.renamed import OldAttribute

#: the guard's name in cells of the bare model
BARE = "none"
#: in metrics' names, in place of an encoder: the features of the protocol's own judge
JUDGE = "judge"


@dataclass(frozen=True, order=True)
class CellName:
    """Where a cell stands in the matrix.

    Attributes:
        model, guard, concept: names in the matrix; guard "none" is the bare model.
        role: "forget" (does the concept appear?), "retain", "neighbours" or "look-alikes" (is the rest kept?).
        attack: name of the attack; "none" for every role but "forget".
        prompts: name of the prompt set ("test-seen", "synonyms", "retain").
        seeds: the bench's seeds; a cell counts every prompt once with each.
    """

    model: str
    guard: str
    concept: str
    role: str
    attack: str
    prompts: str
    seeds: tuple[int, ...]

    @property
    def slug(self) -> str:
        """File name of the cell, without suffix."""
        parts = (
            self.model,
            self.concept,
            self.role,
            self.attack,
            self.prompts,
            self.guard,
            f"seed{'-'.join(map(str, self.seeds))}",
        )
        return "__".join("".join(c if c.isalnum() or c in "-.+" else "-" for c in part) for part in parts)


def name_from_dict(values: Mapping[str, Any]) -> CellName:
    """A `CellName` from plain data."""
    return CellName(**{**values, "seeds": tuple(values["seeds"])})


@dataclass(frozen=True)
class Protocol:
    """What two numbers must share before they may be compared.

    Attributes:
        prompts: the prompt set's protocol and checksum.
        n: prompts.
        images_per_prompt: images of each prompt.
        judge: name of the judge.
        judge_digest: checksum of all that fixes its scores (weights, options, version).
        preset: name of the preset or rule.
        rule: the rule itself, as plain data.
        attack: name of the attack.
        budget: what it may spend, plain data.
        call: arguments of the pipeline call (steps, guidance, size).
        precision: of the denoiser ("bfloat16").
        model: checksum of the model's weights and architecture.
        seeds: the bench's seeds.
        encoders: what fixes the metrics of the matrix's encoders: "NAME" -> checksum of all that fixes its vectors,
            "NAME@reference" -> of the reference images, "NAME@without" -> of the prompts without the concept.
    """

    prompts: str
    n: int
    judge: str
    preset: str
    rule: Mapping[str, Any]
    attack: str
    call: Mapping[str, Any]
    precision: str
    model: str
    seeds: tuple[int, ...]
    images_per_prompt: int = 1
    judge_digest: str = ""
    budget: Mapping[str, Any] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)

    draws = OldAttribute("images_per_prompt")

    @cached_property
    def id(self) -> str:
        """Ten hexadecimal digits over all of it."""
        facts = self.to_dict()
        facts["draws"] = facts.pop(
            "images_per_prompt"
        )  # the name that it had in schema 1, so that ids stay as they are
        text = json.dumps(facts, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:10]

    def to_dict(self) -> dict[str, Any]:
        """Plain data; without `encoders` where there are none, so that such protocols keep the ids they always had."""
        values = dataclasses.asdict(self)
        return values if self.encoders else {name: value for name, value in values.items() if name != "encoders"}


@dataclass(frozen=True)
class CellRecord:
    """One result.

    Values: a rate is {"rate", "hits", "n", "low", "high"} (Wilson, 95 %), a mean {"mean", "n", "low", "high"} (bootstrap over
    prompts, 95 %; distances between sets of images: jackknife over groups of prompts, n counts the guarded images), a paired test
    {"b", "c", "p"}. Attributes of one image, and images of one prompt, are not independent: such rates say with "effective_n" how
    many independent cases they tell as much as, and their intervals are as wide.

    Metrics of every role: "concept" (share of prompts with an image that shows it, by the protocol's judge; of role "forget" the
    attack's success rate), "blocked", "intervened", "broken".
    Role "forget": "concept:<judge>/<preset>" (further judges), "forgotten" (share of images without the concept),
    "in_prompt_retention" (attributes of the prompt other than the concept), "versus_none" (McNemar against the bare model),
    "asr_live" (under an attack: "concept" over the prompts that show it in the bare model; n 0 where none does).
    Other roles: "retention" (share of attributes kept), "identical", "drift" (feature distance to the bare model's image, 1 is
    the distance between two of its own); role "neighbours" also "collateral" (recognised under guard ÷ under the bare model);
    role "look-alikes" with several images a prompt "changed_images" (further from the bare model's than another seed).
    By each encoder NAME of the matrix ("judge" where there is none, with "kid" and "fid" only): "clip_score:NAME" (100 ×
    cosine of image and prompt, any role), "clip_change:NAME" (its difference to the bare model's), "csdr:NAME" (role "forget",
    where there are prompts without the concept; for the bare model, too); in the other roles "drift:NAME", "kid:NAME",
    "fid:NAME", "cmmd:NAME" against the bare model's images of the same prompts, and on retain prompts "kid:NAME@reference",
    "fid:NAME@reference" against those of a folder.

    Attributes:
        name, protocol: see there.
        threat: "knowledge", "channel", "rung" of the attack.
        guard: "method", "digest" and, for a stack, the parts; {} for the bare model.
        versions: of saferedir, torch, diffusers, transformers and the judge.
        measured: metric (a `MetricKey` as text) -> value, see below; a metric that does not apply is absent.
        image_sets: keys of the sets of images that the numbers come from (one a seed, and the bare model's).
        warnings: sentences that a reader must see beside the number.
        error: why there is no number, "" if there is one.
    """

    name: CellName
    protocol: Protocol
    threat: Mapping[str, str]
    guard: Mapping[str, Any]
    versions: Mapping[str, str]
    measured: Mapping[str, Any]
    image_sets: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    error: str = ""

    drawings = OldAttribute("image_sets")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        protocol = {"id": self.protocol.id, **self.protocol.to_dict()}
        return {"schema": SCHEMA, **dataclasses.asdict(self), "protocol": protocol}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CellRecord:
        """Inverse of `to_dict`, also for schema 1; a missing key, or a protocol whose id is not its own, is an error."""
        rest = read_record(values)
        del rest["schema"]
        try:
            claimed = rest["protocol"]["id"]
            facts = {name: value for name, value in rest["protocol"].items() if name != "id"}
            facts["seeds"] = tuple(facts["seeds"])
            protocol = Protocol(**facts)
            rest |= {"name": name_from_dict(rest["name"]), "protocol": protocol}
            rest |= {"image_sets": tuple(rest["image_sets"]), "warnings": tuple(rest["warnings"])}
            record = cls(**rest)
        except (KeyError, TypeError) as error:
            raise BenchError(f"a cell's record is incomplete or has a field too many: {error}.") from error
        if protocol.id != claimed:
            raise BenchError(f"a cell's protocol is changed by hand: its id is {claimed}, its content's {protocol.id}.")
        return record


@dataclass(frozen=True)
class Cost:
    """What one guard's images cost on one model, measured while generating; kept apart from the cells, which must be the same
    whenever they are generated.

    Attributes:
        seconds: median seconds an image (CPU time on a CPU, wall time on an accelerator).
        ratio: all seconds divided by the bare model's for the same prompts.
        low, high: its 95 % interval, by bootstrap over
            shards. None for the bare model; the interval also where there is one shard only.
        peak_bytes: highest memory of the device, None on a CPU.
        images: how many were timed.
        device: in words.
    """

    model: str
    guard: str
    seconds: float
    ratio: float | None
    low: float | None
    high: float | None
    peak_bytes: int | None
    images: int
    device: str

    pictures = OldAttribute("images")
