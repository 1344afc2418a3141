"""The matrix: what a TOML file may say, section by section, as pydantic models. Needs the extra `bench`.

config.py reads a file into a frozen `Matrix`, config_checks.py checks what pydantic cannot see, plan.py turns it into work.
"""

from __future__ import annotations

from typing import Any

from saferedir.utils.extras import require_extra

require_extra("pydantic", "bench", "the bench")
from pydantic import AliasChoices, BaseModel, ConfigDict, Field  # noqa: E402 - after the sentence about the extra


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PromptLimits(_Section):
    """How many prompts of each kind at most; None for all there are."""

    forget: int | None = Field(None, ge=1)
    rephrased: int | None = Field(None, ge=1)
    retain: int | None = Field(None, ge=1)
    neighbours: int | None = Field(None, ge=1)
    look_alikes: int | None = Field(None, ge=1)


class LoraEntry(_Section):
    """A LoRA: a .safetensors file, a folder or a hub id, and its scale."""

    load: str
    scale: float = 1.0


class ModelEntry(_Section):
    """A pipeline: what `load_pipeline` takes, and how it is called."""

    load: str
    variant: str | None = None  # of the weight files, such as "fp16"
    revision: str | None = None  # of a hub id
    config: str | None = None  # of a checkpoint in one file: where its parts are described
    loras: list[LoraEntry] = Field(default_factory=list)
    batch: int = Field(8, ge=1)
    dtype: str = Field("float32", pattern="^(float32|float16|bfloat16)$")
    device: str = "auto"
    fast: bool = True  # bf16 autocast on a processor with instructions for it
    call: dict[str, Any] = Field(default_factory=dict)


class JudgeEntry(_Section):
    """Who judges, and what counts: a preset by name, or a rule as plain data."""

    name: str
    preset: str | None = None
    rule: dict[str, Any] | None = None
    options: dict[str, Any] = Field(default_factory=dict)


class FileEntry(_Section):
    """A prompt file of the user's."""

    file: str
    format: str = "plain"
    rows: int | None = Field(None, ge=1)
    allow_duplicates: bool = False


class ConceptEntry(_Section):
    """A concept: built-in prompts, or files."""

    prompts: str | None = None
    forget: FileEntry | None = None
    rephrased: dict[str, FileEntry] = Field(default_factory=dict)
    retain: FileEntry | None = None
    neighbours: dict[str, FileEntry] = Field(default_factory=dict)
    look_alikes: FileEntry | None = None
    without: FileEntry | None = None  # the forget prompts with the concept taken out, row by row
    judge: JudgeEntry
    second_judges: list[JudgeEntry] = Field(default_factory=list)


class GuardEntry(_Section):
    """A guard: exactly one of `load` (folder, hub id, packaged name), `recipe`, `method` (with `config`), `stack`.

    `trained_on`: files of prompts that it was made from; prompts of the bench that are among them are reported.
    """

    load: str | None = None
    recipe: str | None = None
    method: str | None = None
    stack: list[str] | None = None
    config: dict[str, Any] = Field(default_factory=dict)
    concepts: list[str] | None = None
    force: bool = False
    trained_on: list[str] = Field(default_factory=list)

    @property
    def kinds(self) -> list[str]:
        """Which of the four are given."""
        return [name for name in ("load", "recipe", "method", "stack") if getattr(self, name) is not None]


class EncoderEntry(_Section):
    """An encoder; reference: a folder of images to compare a model's with, besides the bare model's own."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    reference: str | None = None


class Matrix(_Section):
    """A whole bench."""

    title: str
    description: str = ""
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    attacks: list[str] = Field(default_factory=lambda: ["none"])
    images_per_prompt: int = Field(1, ge=1, validation_alias=AliasChoices("images_per_prompt", "draws"))
    keep_images: bool = True
    prompts: PromptLimits = Field(default_factory=lambda: PromptLimits.model_validate({}))
    needs: dict[str, str] = Field(default_factory=dict)
    model: dict[str, ModelEntry] = Field(min_length=1)
    concept: dict[str, ConceptEntry] = Field(min_length=1)
    guard: dict[str, GuardEntry] = Field(default_factory=dict)
    encoder: dict[str, EncoderEntry] = Field(default_factory=dict)
