"""`saferedir evidence`: what a reviewer of a service needs, in one folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from saferedir.cli.common import console, escape, quiet
from saferedir.utils.extras import require_extra

Folders = Annotated[
    list[Path] | None, typer.Option(exists=True, file_okay=False, help="Folder of attack cells; repeatable.")
]


def evidence(
    out: Annotated[Path, typer.Option(help="A new folder for the page, the data, the cells and the checksums.")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="serve.toml; default: the embedded model, as `saferedir serve`.")
    ] = None,
    audit: Annotated[
        str | None, typer.Option(metavar="URL", help="Audit database instead of the configuration's.")
    ] = None,
    results: Folders = None,
    bench: Annotated[
        list[Path] | None, typer.Option(exists=True, file_okay=False, help="A bench folder; repeatable.")
    ] = None,
    calibration: Annotated[
        list[Path] | None, typer.Option(exists=True, dir_okay=False, help="Of `saferedir judge calibrate`; repeatable.")
    ] = None,
    expect: Annotated[
        str | None, typer.Option(metavar="HASH", help="A head of the audit that was noted earlier.")
    ] = None,
) -> None:
    """Pack what a reviewer needs: fingerprints, policy, judges, results of exactly this model and policy, limits, audit.

    What was measured of something else, such as one guard of three, or with other steps, stands apart; what was not measured is
    said not to be. It is no legal advice.

    Example:  `saferedir evidence --config serve.toml --results results --bench runs/bench --out evidence`
    """
    require_extra("sqlalchemy", "server", "evidence")
    require_extra("pydantic", "bench", "evidence")
    from saferedir.server.config import read_settings
    from saferedir.server.evidence.collect import collect
    from saferedir.server.evidence.write import write_evidence

    settings = read_settings(config)
    if audit is not None:
        settings = settings.changed(audit={**settings.audit.model_dump(), "url": audit})
    quiet()
    facts, cells = collect(settings, results or [], bench or [], calibration or [], expect)
    page = write_evidence(facts, cells, out)
    for model in facts["models"]:
        for profile in model["profiles"]:
            console.print(
                f"{escape(model['name'])}, profile {escape(profile['name'])}: {escape(_measured(profile))}",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
    console.print(f"Evidence written to {escape(str(page))}", soft_wrap=True, highlight=False)


def _measured(profile: Mapping[str, Any]) -> str:
    """Of each concept how many results are of exactly this service."""
    if not profile["measured"]:
        return "not measured"
    return "; ".join(
        f"{row['concept']} {len(row['bench'])} bench and {len(row['attacks'])} attack cells"
        if row["is_measured"]
        else f"{row['concept']} not measured"
        for row in profile["concepts"]
    )
