"""`saferedir serve`: guarded images over HTTP, in the shape of OpenAI's Images API."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from saferedir.cli.common import console, errors
from saferedir.utils.extras import require_extra


class Engine(enum.StrEnum):
    """Where models run."""

    local = "local"
    ray = "ray"


def serve(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="serve.toml: models, policies, keys, limits; default: the embedded model on 127.0.0.1."
        ),
    ] = None,
    host: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Instead of the file's; others need keys.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Instead of the file's (8000); 0: any that is free.")
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Audit database instead of the file's: sqlite:///FILE or postgresql://…"),
    ] = None,
    playground: Annotated[
        bool | None, typer.Option("--playground/--no-playground", help="A page for people at / (extra playground).")
    ] = None,
    engine: Annotated[
        Engine,
        typer.Option(
            help="local: models in this process; ray: in replicas by Ray Serve (extra ray, [ray] in the file)."
        ),
    ] = Engine.local,
    new_key: Annotated[
        str | None,
        typer.Option("--new-key", metavar="NAME", help="Print a new key and its lines for the file, and stop."),
    ] = None,
) -> None:
    """Serve guarded image generation over HTTP, with an audit record of every image.

    It speaks OpenAI's Images and Moderations APIs: point an `openai` client at http://127.0.0.1:8000/v1. A refused request is
    an error with code "moderation_blocked". What the file may say: docs/server.md.

    Example:  `saferedir serve`

    Example:  `saferedir serve --playground`

    Example:  `saferedir serve --config serve.toml --host 0.0.0.0`
    """
    require_extra("fastapi", "server", "the service")
    from saferedir.cli.terminal import quiet
    from saferedir.server.config import ApiKey, read_settings
    from saferedir.server.errors import ServerError
    from saferedir.server.keys import new_key as make_key
    from saferedir.server.running import serve as run

    if new_key is not None:
        key, digest = make_key()
        try:
            ApiKey(name=new_key, sha256=digest)
        except ValueError:
            raise ServerError(
                "a key's name has 1 to 100 letters, digits, and . _ / - only; name it otherwise."
            ) from None
        errors.print(f"The key, shown once; the file holds its hash only: {key}", highlight=False, soft_wrap=True)
        typer.echo(f'[[keys]]\nname = "{new_key}"\nsha256 = "{digest}"\nprofile = "default"')
        return
    settings = read_settings(config).changed(host=host, port=port)
    if audit is not None:
        settings = settings.changed(audit={**settings.audit.model_dump(), "url": audit})
    if playground is not None:
        settings = settings.changed(playground={**settings.playground.model_dump(), "enabled": playground})
    if settings.playground.enabled:
        require_extra("gradio", "playground", "the playground")
    quiet()
    names = ", ".join(model.name for model in settings.models)

    def on_ready(address: str) -> None:
        page = f" The playground is at {address}/" if settings.playground.enabled else ""
        console.print(
            f"Serving {names} at {address}/v1, records in {settings.audit.shown_url()}.{page}",
            soft_wrap=True, highlight=False, markup=False,
        )  # fmt: skip

    run(settings, on_ready, engine.value)
