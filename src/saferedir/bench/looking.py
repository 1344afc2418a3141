"""Judges and encoders that come later look at the pictures that were kept: nothing is drawn for them.

Imports drawing, seeing, resources and store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from saferedir.bench.drawing import Shard
from saferedir.bench.resources import JudgeSpec, Looker, Resources
from saferedir.bench.seeing import from_png, seen_by
from saferedir.bench.store import Store
from saferedir.errors import BenchError


def look(
    shards: Mapping[str, Sequence[Shard]],
    lookers: Mapping[str, Sequence[Looker]],
    store: Store,
    resources: Resources,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Let every judge and encoder of a drawing see the shards that it has not seen; `on_progress(done, total)` counts them.

    Raises BenchError where a shard was not drawn, or its pictures were not kept.
    """
    todo = [(shard, one) for key, own in shards.items() for shard in own for one in store.lacks(lookers[key], shard)]
    for done, (shard, looker) in enumerate(todo, start=1):
        if not store.has(shard):
            raise BenchError(f"the bench in {store.root} is not finished; end it with `saferedir bench run` first.")
        if not can_look(store, shard):
            kind = "judge" if isinstance(looker, JudgeSpec) else "encoder"
            raise BenchError(
                f"{kind} {looker.name!r} saw no picture, and none was kept (keep_images = false); draw them again."
            )
        pictures = [from_png(image) for image in store.images(shard)]
        store.write_judged(shard, looker, seen_by(looker, pictures, resources))
        on_progress(done, len(todo))


def can_look(store: Store, shard: Shard) -> bool:
    """Whether a drawn shard's pictures were kept, as far as they were made at all."""
    return any(image is not None for image in store.images(shard)) or store.all_blocked(shard)
