"""`saferedir methods`: every method with its paper, what it needs and what it costs."""

from __future__ import annotations

from dataclasses import asdict

from saferedir.cli.common import console, escape, new_table, print_json
from saferedir.cli.options import AsJson


def list_methods(as_json: AsJson = False) -> None:
    """List the methods: what each does, its paper, what a guard of it needs, and what it costs.

    Cost is in denoiser rows of a run under guidance: 1.5x is one row more beside the two of guidance. How well each works on
    the packaged world: docs/methods.md, or `saferedir demo --guard all`.

    Example:  `saferedir methods`
    """
    from saferedir.guards.catalogue import METHODS
    from saferedir.guards.methods import methods

    if as_json:
        print_json([{k: v for k, v in asdict(method).items() if k != "target"} for method in METHODS])
        return
    table = new_table("Methods", "method", "arXiv", "cost", "needs", "what it does")
    for column in table.columns[:3]:
        column.no_wrap = True
    for method in METHODS:
        cells = (method.name, method.paper or "–", method.cost.replace(" to ", "–"), method.needs, method.title)
        table.add_row(*map(escape, cells))
    for name in sorted(set(methods()) - {method.name for method in METHODS}):
        table.add_row(escape(name), "–", "–", "–", "registered by a plug-in")
    console.print(table)
    console.print("How to make a guard:", highlight=False)
    for method in METHODS:
        console.print(f"  {method.name:<16} {escape(method.command)}", soft_wrap=True, highlight=False)
