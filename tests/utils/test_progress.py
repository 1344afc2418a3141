"""Progress: silent by default; the terminal's bars follow the same protocol and leave the terminal alone afterwards."""

from tests.watched import Watched

from saferedir.cli.common import progress_bar
from saferedir.utils.progress import SILENT


def test_nobody_needs_to_watch() -> None:
    with SILENT.task("counting", 3) as advance:
        advance()
        advance(2, "counted")


def test_a_watcher_is_told_label_total_and_count() -> None:
    watched = Watched()
    with watched.task("counting", 3, 1) as advance:
        advance(2, "counted")
    assert watched.steps == [("counting", 3, 1), ("counted", 3, 3)]


def test_bars_live_while_a_task_is_open_and_bars_without_a_total_go() -> None:
    bars = progress_bar()
    with bars.task("planning [nothing]") as advance:
        advance(0, "planning: [a]")
        with bars.task("inside", 2) as inner:
            inner()
            assert bars._bar.live.is_started
    assert not bars._bar.live.is_started
    assert [(task.description, task.completed) for task in bars._bar.tasks] == [("inside", 1)]
