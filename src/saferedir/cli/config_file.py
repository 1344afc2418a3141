"""`saferedir --config FILE`: options of the commands in a TOML file, by click's own defaults; what is typed wins.

[generate]
model = "owner/name"
lora = ["style.safetensors:0.8"]
guard = ["runs/logo"]
policy = "verify"

[train.saferedir]
rollouts = 320
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import typer


def read_defaults(ctx: typer.Context, file: Path | None) -> Path | None:
    """Callback of the option: have the values of `file` as defaults of the commands below."""
    if file is None or ctx.resilient_parsing:
        return file
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read as TOML ({error}).") from error
    ctx.default_map = {**(ctx.default_map or {}), **_for_group(ctx.command, values, str(file))}
    return file


def _for_group(group: Any, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Tables of a group of commands, by command, with the options' names as click has them."""
    defaults: dict[str, Any] = {}
    for name, table in values.items():
        command = group.commands.get(name)
        if command is None or not isinstance(table, dict):
            known = ", ".join(sorted(group.commands))
            raise typer.BadParameter(f"{where} has {name!r}, where a table of one of the commands {known} is expected.")
        inner = f"{where}, [{name}]"
        is_group = isinstance(command, click.Group) or hasattr(command, "commands")
        if is_group:
            defaults[name] = _for_group(command, table, inner)
        else:
            new_name = group.context_settings.get("token_normalize_func", str)  # of an option that was renamed
            defaults[name] = _for_command(command, {new_name(key): value for key, value in table.items()}, inner)
    return defaults


def _for_command(command: Any, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options of one command: written as on the command line, with - or _, without the two dashes."""
    options = {
        option.removeprefix("--").replace("-", "_"): parameter
        for parameter in command.params
        if parameter.param_type_name == "option"
        for option in parameter.opts
        if option.startswith("--") and parameter.name != "help"
    }
    defaults = {}
    for name, value in values.items():
        parameter = options.get(name.replace("-", "_"))
        if parameter is None:
            known = ", ".join(sorted(options))
            raise typer.BadParameter(f"{where} has no option {name!r}; there are {known}.")
        if isinstance(value, dict) and parameter.metavar == "NAME=VALUE":
            value = [f"{key}={json.dumps(inner)}" for key, inner in value.items()]  # call = {height = 1024}
        if parameter.multiple != isinstance(value, list):
            expected = "a list" if parameter.multiple else "one value"
            raise typer.BadParameter(f"{where}, {name} is {value!r}; expected {expected}.")
        is_flag = bool(getattr(parameter, "is_flag", False))
        if isinstance(value, bool) != is_flag:
            expected = "true or false" if is_flag else "a value as on the command line"
            raise typer.BadParameter(f"{where}, {name} is {value!r}; expected {expected}.")
        if not is_flag:  # as if it had been typed, so that it is checked in the same way
            value = list(map(str, value)) if isinstance(value, list) else str(value)
        defaults[parameter.name] = value
    return defaults
