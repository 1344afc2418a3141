"""GuardConfig: the frozen settings that every guard has, their check, and their form as plain data.

A method's own settings extend it, beside the method; guard authors import it from `guard`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from saferedir.errors import GuardConfigError
from saferedir.utils.checks import Checked, is_nonempty_str


@dataclass(frozen=True, kw_only=True)
class GuardConfig(Checked):
    """Settings that every guard has; a method adds its own fields and checks them in `validate`.

    Attributes:
        concept: what must not appear, in words.
        backbone: fingerprint of the pipeline the guard was made for (`fingerprint.backbone_fingerprint`), or None if the guard
            works with any.
        training: how it was made (data, steps, seed), free-form plain data.
        measured: what was measured, free-form plain data.

    Example:
        >>> from dataclasses import dataclass
        >>> from saferedir.guard import GuardConfig
        >>> @dataclass(frozen=True, kw_only=True)
        ... class BrightnessConfig(GuardConfig):
        ...     limit: float = 0.5
        ...
        ...     def validate(self) -> None:
        ...         self.require_number("limit", at_least=0, at_most=1)
        >>> BrightnessConfig(concept="glare", limit=0.25).to_dict()["limit"]
        0.25
    """

    concept: str
    backbone: dict[str, Any] | None = None
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)

    #: fields that are paths of files; saved relative to the guard's folder, found from there
    file_fields: ClassVar[tuple[str, ...]] = ()
    #: fields that came later -> the value at which they change nothing; `settings` leaves them out there
    options: ClassVar[Mapping[str, Any]] = {}

    def __post_init__(self) -> None:
        for entry in dataclasses.fields(self):  # JSON has no tuples
            value = getattr(self, entry.name)
            if isinstance(value, list) and "tuple" in str(entry.type):
                object.__setattr__(self, entry.name, tuple(value))
        self.require(is_nonempty_str(self.concept), "concept", "a non-empty name")
        self.validate()

    def validate(self) -> None:
        """Check the values of a method's own fields; called once, when the config is made.

        Use `require` and its sisters (`checks.py`), which raise GuardConfigError.
        """

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return dataclasses.asdict(self)

    def settings(self) -> dict[str, Any]:
        """What the guard is made of, as plain data, without options that are off, so that older guards keep theirs.

        Records count, too: some are read when it runs, such as the lengths of text that it was trained at.
        """
        return {
            name: value
            for name, value in self.to_dict().items()
            if not (name in self.options and value == self.options[name])
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            GuardConfigError: a key is unknown or missing; the sentence names it.
        """
        known = {entry.name: entry for entry in dataclasses.fields(cls) if entry.init}
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise GuardConfigError(
                f"{cls.__name__} has no field {', '.join(map(repr, unknown))}; "
                f"known fields: {', '.join(sorted(known))}."
            )
        missing = [
            name
            for name, entry in known.items()
            if name not in values
            and entry.default is dataclasses.MISSING
            and entry.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise GuardConfigError(f"{cls.__name__} needs a value for {', '.join(map(repr, missing))}.")
        return cls(**values)
