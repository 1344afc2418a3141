"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

MAX_SEED = 2**63 - 1  # torch takes twice as much, so that seed + i fits

_HELP = "Of the model's weight files, such as fp16; default: the plain ones."
ModelVariant = Annotated[str | None, typer.Option("--model-variant", metavar="NAME", help=_HELP)]
#: the same where no other option is called --variant
Variant = Annotated[str | None, typer.Option("--variant", "--model-variant", metavar="NAME", help=_HELP)]
Revision = Annotated[str | None, typer.Option(metavar="NAME", help="Branch, tag or commit of a model on the hub.")]
