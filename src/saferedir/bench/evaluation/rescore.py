"""Judges and encoders that come later, or failed before, score the images that were stored: nothing is generated for them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from saferedir.bench.generation.generate import Shard
from saferedir.bench.generation.resources import JudgeSpec, Resources, Scorer
from saferedir.bench.generation.score import from_png, in_words, score_with
from saferedir.bench.storage.store import Store
from saferedir.errors import BenchError
from saferedir.utils.progress import SILENT, Progress

#: (set of images, key of a judge or encoder) -> why it has not scored all of that set of images
Unscored = dict[tuple[str, str], str]


def shards_to_score(
    shards: Mapping[str, Sequence[Shard]], scorers: Mapping[str, Sequence[Scorer]], store: Store
) -> list[tuple[Shard, Scorer]]:
    """Every generated shard with each judge or encoder that has not scored it, whether or not its images were kept."""
    generated = [(shard, scorers[key]) for key, of_set in shards.items() for shard in of_set if store.has(shard)]
    return [(shard, scorer) for shard, all_of_them in generated for scorer in store.lacks(all_of_them, shard)]


def rescore(
    todo: Sequence[tuple[Shard, Scorer]],
    store: Store,
    resources: Resources,
    progress: Progress = SILENT,
) -> Unscored:
    """Let judges and encoders score shards; `progress` counts them. What comes back is who failed at which set
    of images: it has not scored all of it, and others are not held up.
    """
    failed: Unscored = {}
    if not todo:
        return failed
    with progress.task("scoring stored images", len(todo)) as advance:
        for shard, scorer in todo:
            try:
                if not store.has_images(shard):
                    raise BenchError("the images were not kept (keep_images = false)")
                output = score_with(scorer, [from_png(image) for image in store.images(shard)], resources)
            except Exception as error:
                failed.setdefault((shard.key, scorer.key), in_words(error))
            else:
                store.write_scores(shard, scorer, output)
            advance()
    return failed


def check_images_stored(todo: Sequence[tuple[Shard, Scorer]], needed: Collection[Scorer], store: Store) -> None:
    """BenchError where one of those that are needed has to score images that were not kept."""
    for shard, scorer in todo:
        if scorer in needed and not store.has_images(shard):
            kind = "judge" if isinstance(scorer, JudgeSpec) else "encoder"
            raise BenchError(
                f"{kind} {scorer.name!r} scored no image, and none was kept (keep_images = false); generate them again."
            )
