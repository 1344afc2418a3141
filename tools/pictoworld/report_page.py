"""The quality report as a Markdown page: bars beside measured rates, "missed" said plainly."""

from __future__ import annotations

from typing import Any

PHRASING = {
    "seen": "canonical and seen synonyms",
    "synonym": "held-out synonyms",
    "implicit": "implicit descriptions",
    "noisy": "noisy spellings",
}


def rate_text(rate: dict[str, Any]) -> str:
    """A rate with its interval and count."""
    return f"{rate['rate']:.3f} [{rate['low']:.3f}, {rate['high']:.3f}], n = {rate['n']}"


def bar_text(row: dict[str, Any]) -> str:
    """A bar as an inequality."""
    return f"{'≥' if row['at_least'] else '≤'} {row['bar']:g}"


def page(report: dict[str, Any]) -> str:
    """The whole page."""
    settings, missed = report["settings"], [row for row in report["bars"] if not row["met"]]
    verdict = (
        "Every bar is met."
        if not missed
        else f"**{len(missed)} of {len(report['bars'])} bars are missed:** {'; '.join(row['what'] for row in missed)}."
    )
    rows = [
        [r["what"], bar_text(r), rate_text(r["measured"]), "met" if r["met"] else "**missed**"] for r in report["bars"]
    ]
    judge = report["judge"]
    judged = [
        [
            name,
            rate_text(judge["renders"][name]),
            rate_text(judge["round_trips"][name]),
            rate_text(report["template_agreement"][name]),
        ]
        for name in judge["renders"]
    ]
    broken = [[view.replace("_", " "), rate_text(rate)] for view, rate in judge["called_broken"].items()]
    parts = [
        "# PictoWorld: quality of the embedded model and its judge",
        f"{verdict} Made by `python -m tools.pictoworld report` with {settings['images']} held-out captions, "
        f"{settings['concept_images']} prompts per concept and phrasing, {settings['steps']} DDIM steps, guidance "
        f"{settings['guidance_scale']:g}, seed {settings['seed']}, {report['precision']}, torch {report['torch']}. "
        "Brackets are 95 % Wilson intervals; a bar is held against the measured rate itself. An attribute counts only "
        "where the caption fixes it.",
        "![Samples: the first captions, not selected](pictoworld.png)",
        "## Bars",
        table(["what", "bar", "measured", ""], rows),
        "Phrasings: " + "; ".join(f"{name} = {text}" for name, text in PHRASING.items()) + ".",
        f"Position, for which no bar is set: {rate_text(report['model']['position'])}.",
        "## The judge",
        table(["attribute", "held-out renders", "autoencoder round trips", "agrees with the template judge"], judged),
        f"The last column: on images that the model generated and that neither judge calls broken. About "
        f'"broken" itself they agree in {rate_text(report["template_agreement"]["broken"])}.',
        table(["images", "called broken"], broken),
        *(
            f"### Confusion of {name} on renders\n\nRows: truth. Columns: what the judge says.\n\n{confusion(matrix)}"
            for name, matrix in judge["confusion"].items()
        ),
    ]
    return "\n\n".join(parts) + "\n"


def confusion(matrix: dict[str, Any]) -> str:
    """A confusion matrix as a table."""
    values = matrix["values"]
    rows = [[value, *map(str, counts)] for value, counts in zip(values, matrix["counts"], strict=True)]
    return table(["", *values], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
