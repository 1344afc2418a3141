"""Work of an executor: a shard to be generated, what came of it, and the one attempt at it, the same on every machine."""

from __future__ import annotations

from dataclasses import dataclass

from saferedir.bench.generation.generate import GeneratedShard, GenerationSpec, Shard, generate_shard
from saferedir.bench.generation.resources import Resources
from saferedir.bench.generation.score import in_words


@dataclass(frozen=True)
class Job:
    """One shard, and all that is needed to generate it."""

    spec: GenerationSpec
    shard: Shard


@dataclass(frozen=True)
class Outcome:
    """A shard's images, or the sentence that says why there are none; `worker` did it."""

    job: Job
    generated: GeneratedShard | None
    error: str = ""
    worker: str = "this process"


def attempt(job: Job, resources: Resources, worker: str = "this process") -> Outcome:
    """Generate one shard; an error becomes a sentence, so that one bad cell does not end a night's run."""
    try:
        return Outcome(job, generate_shard(job.spec, job.shard, resources), worker=worker)
    except (KeyboardInterrupt, SystemExit):
        raise
    except Exception as error:
        return Outcome(job, None, in_words(error), worker)
