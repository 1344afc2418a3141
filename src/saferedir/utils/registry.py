"""Registry: classes by name in an explicit table, each imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any, Generic, Protocol, TypeVar

from saferedir.utils.names import bad_options_message, unknown_name_message


class Entry(Protocol):
    """A row of the table."""

    @property
    def path(self) -> str:
        """ "module:Class"."""


ClassT = TypeVar("ClassT")
EntryT = TypeVar("EntryT", bound=Entry)


class Registry(Generic[ClassT, EntryT]):
    """A table of one kind of thing.

    Args:
        kind: what its classes make, with its article: "a judge".
        error: raised for a name that is taken or unknown, and for options that the class does not have.

    Attributes:
        entries: the table, in the order of registration.
    """

    def __init__(self, kind: str, error: type[Exception]) -> None:
        self._phrase, self._kind, self._error = kind, kind.partition(" ")[2], error
        self.entries: dict[str, EntryT] = {}

    def register(self, name: str, entry: EntryT) -> None:
        """Add one row; a name already taken is an error."""
        if name in self.entries:
            raise self._error(f"{self._phrase} named {name!r} is registered already.")
        self.entries[name] = entry

    def class_of(self, name: str) -> type[ClassT]:
        """The class of that name; an unknown one is one clear sentence."""
        if name not in self.entries:
            raise self._error(unknown_name_message(self._kind, name, self.entries))
        module, _, attribute = self.entries[name].path.partition(":")
        kind: type[ClassT] = getattr(import_module(module), attribute)
        return kind

    def load(self, name: str, options: Mapping[str, Any]) -> ClassT:
        """An instance, made with the options of its class; an unknown or missing one is one clear sentence."""
        kind = self.class_of(name)
        if why := bad_options_message(self._kind, name, kind, options):
            raise self._error(why)
        return kind(**options)
