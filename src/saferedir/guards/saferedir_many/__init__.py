"""SafeRedir for many concepts in one guard: settings, what a run remembers, its records, and the guard."""

from saferedir.guards.saferedir_many.config import SafeRedirManyConfig
from saferedir.guards.saferedir_many.guard import SafeRedirMany

__all__ = ["SafeRedirMany", "SafeRedirManyConfig"]
