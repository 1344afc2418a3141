"""Judges and encoders that come later, or failed before, look at the pictures that were kept: nothing is drawn for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from saferedir.bench.generation.generate import Shard
from saferedir.bench.generation.resources import JudgeSpec, Looker, Resources
from saferedir.bench.generation.score import from_png, in_words, seen_by
from saferedir.bench.storage.store import Store
from saferedir.errors import BenchError

#: (drawing, key of a judge or encoder) -> why it has not seen all of that drawing
Unseen = dict[tuple[str, str], str]


def to_look_at(
    shards: Mapping[str, Sequence[Shard]], lookers: Mapping[str, Sequence[Looker]], store: Store
) -> list[tuple[Shard, Looker]]:
    """Every drawn shard with each judge or encoder that has not seen it, whether or not its pictures were kept."""
    drawn = [(shard, lookers[key]) for key, own in shards.items() for shard in own if store.has(shard)]
    return [(shard, one) for shard, all_of_them in drawn for one in store.lacks(all_of_them, shard)]


def look(
    todo: Sequence[tuple[Shard, Looker]],
    store: Store,
    resources: Resources,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Unseen:
    """Let judges and encoders see shards; `on_progress(done, total)` counts them. What comes back is who failed at which drawing:
    it has not seen all of it, and others are not held up.
    """
    failed: Unseen = {}
    if todo:
        on_progress(0, len(todo))
    for done, (shard, looker) in enumerate(todo, start=1):
        try:
            if not store.can_show(shard):
                raise BenchError("the pictures were not kept (keep_images = false)")
            seen = seen_by(looker, [from_png(image) for image in store.images(shard)], resources)
        except Exception as error:
            failed.setdefault((shard.key, looker.key), in_words(error))
        else:
            store.write_judged(shard, looker, seen)
        on_progress(done, len(todo))
    return failed


def check_kept(todo: Sequence[tuple[Shard, Looker]], needed: Collection[Looker], store: Store) -> None:
    """BenchError where one of those that are needed has to look at pictures that were not kept."""
    for shard, looker in todo:
        if looker in needed and not store.can_show(shard):
            kind = "judge" if isinstance(looker, JudgeSpec) else "encoder"
            raise BenchError(
                f"{kind} {looker.name!r} saw no picture, and none was kept (keep_images = false); draw them again."
            )
