"""Where a guarded run makes the host wait for the device: counted on the CPU, on a pretend device.

The pretend device is PyTorch's third-party one with a tensor class behind it that computes on the CPU and counts what a real
device would be asked for: waits (a value read by the host, or a shape that depends on values), copies between host and device,
and kernels launched. Operations that a real device refuses (a tensor of the host among its own) are refused here, too.

    python benchmarks/syncs.py                          # every guard of the contract tests on a few pipelines
    python benchmarks/syncs.py --families --methods     # every method on a pipeline of every family, some minutes
    python benchmarks/syncs.py --all                    # every guard on every pipeline of the contract tests
    python benchmarks/syncs.py --pipelines sd flux --guards saferedir sld --where
    python benchmarks/syncs.py --families --methods --json runs/syncs.json --waits   # goes on where it stopped, then the table

Counts of one step are (run of 4 steps - run of 3 steps), those of a run what is left, both less those of the bare pipeline, which
are counted alike; image-to-image counts the steps that are left of more. "--where" prints the lines of saferedir that wait.
"""

from __future__ import annotations

import argparse
import json
import sys
import traceback
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/ holds the tiny pipelines

from saferedir.errors import SaferedirError
from saferedir.utils.files import replacing

NAME = "pretend"
DEVICE = f"{NAME}:0"
#: behind the name of a guard: as a policy has it that says where its concepts are redirected to
ANCHORED = "+anchor"
REDIRECTORS = ("saferedir", "saferedir_many")
#: operations that give memory and launch nothing
_ALLOCATIONS = ("aten::empty", "aten::new_empty", "aten::lift_fresh", "aten::empty_like")


class Cost(NamedTuple):
    """What a device was asked for.

    Attributes:
        waits: times that the host waits for a value, or for a shape.
        copies: transfers from the host to the device.
        launches: kernels, without views and allocations.
    """

    waits: float = 0
    copies: float = 0
    launches: float = 0

    def minus(self, other: Cost) -> Cost:
        return Cost(*(mine - theirs for mine, theirs in zip(self, other, strict=True)))

    def times(self, factor: float) -> Cost:
        return Cost(*(factor * value for value in self))


class PretendTensor(Tensor):
    """A tensor that says it is on the pretend device; its values are those of `inner`, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendTensor:
        tensor: PretendTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=torch.device(DEVICE),
            requires_grad=inner.requires_grad,
        )
        tensor.inner = inner
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _current().run(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"PretendTensor({self.inner!r})"


class WaitCounter(TorchDispatchMode):
    """Counts while it is entered; `where` says which lines of saferedir waited, and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.waits, self.copies, self.launches = 0, 0, 0
        self.where: Counter[str] = Counter()

    @property
    def cost(self) -> Cost:
        return Cost(self.waits, self.copies, self.launches)

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation: counted, then computed on the CPU."""
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = [each for each in tensors if isinstance(each, PretendTensor)]
        wanted = kwargs.get("device")
        target = None if wanted is None else torch.device(wanted).type
        name = func.name().partition(".")[0]
        self._count(func, name, args, tensors, on_device, target)
        inner = {
            key: torch.device("cpu") if key == "device" and value is not None else value
            for key, value in kwargs.items()
        }
        answer = func(*tree_map(_inner, args), **tree_map(_inner, inner))
        if name == "aten::copy_" or (name.endswith("_") and on_device and isinstance(args[0], Tensor)):
            return args[0]
        is_wrapped = target == NAME if target is not None else bool(on_device)
        return tree_map_only(Tensor, PretendTensor, answer) if is_wrapped else answer

    def _count(
        self, func: Any, name: str, args: Any, tensors: list[Tensor], on_device: list[PretendTensor], target: str | None
    ) -> None:
        if name in ("aten::_to_copy", "aten::copy_"):
            source = args[1] if name == "aten::copy_" else args[0]
            leaves = isinstance(source, PretendTensor)
            arrives = (
                isinstance(args[0], PretendTensor)
                if name == "aten::copy_"
                else target == NAME or (target is None and leaves)
            )
            if leaves and not arrives:
                return self._wait(name)
            if arrives and not leaves:
                self.copies += 1
            elif arrives:
                self.launches += 1
            return None
        if not on_device and target != NAME:
            return None
        is_index = name in ("aten::index", "aten::index_put", "aten::index_put_")
        for each in tensors:
            if isinstance(each, PretendTensor) or not each.ndim:
                continue
            if not is_index:
                raise RuntimeError(f"{name}: a tensor of the host {tuple(each.shape)} among those of the device.")
            self.copies += 1
        tags = func.tags
        has_shape_of_values = torch.Tag.dynamic_output_shape in tags
        if is_index:
            has_shape_of_values = any(
                isinstance(each, Tensor) and each.dtype in (torch.bool, torch.uint8)
                for each in args[1]
                if each is not None
            )
        if torch.Tag.data_dependent_output in tags or has_shape_of_values:
            self._wait(name)
        if name.startswith(_ALLOCATIONS):
            return None
        returned = func._schema.returns
        if any(each.alias_info is None or each.alias_info.is_write for each in returned):
            self.launches += 1
        return None

    def _wait(self, name: str) -> None:
        self.waits += 1
        lines = [
            f"{Path(frame.filename).name}:{frame.lineno}"
            for frame in traceback.extract_stack()
            if "saferedir/" in frame.filename and "src" in frame.filename
        ]
        frames = [line for line in lines if not line.startswith(("hooks.py", "calls.py"))]
        self.where[f"{name} {' < '.join(reversed(frames[-3:])) or 'the pipeline'}"] += 1


class _Creation(TorchFunctionMode):
    """Tensors from lists, and back to them: copies, which PyTorch refuses to make of classes of tensors."""

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy) and isinstance(args[0], PretendTensor):
            return func(args[0].cpu())
        if func is Tensor.__getitem__ and isinstance(args[0], PretendTensor) and isinstance(args[1], list | tuple):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return func(args[0], tuple(torch.tensor(each) if isinstance(each, list) else each for each in index))
        device = (kwargs or {}).get("device")
        if func is torch.tensor and isinstance(
            args[0], list | tuple
        ):  # of numbers on the device, each of which is read
            args = (tree_map_only(PretendTensor, lambda each: each.item(), args[0]), *args[1:])
        is_from_host = func in (torch.tensor, torch.as_tensor) and not isinstance(args[0], PretendTensor)
        if is_from_host and device is not None and torch.device(device).type == NAME:
            return func(*args, **{**(kwargs or {}), "device": "cpu"}).to(DEVICE)
        return func(*args, **(kwargs or {}))


_ACTIVE: list[WaitCounter] = []


def _current() -> WaitCounter:
    return _ACTIVE[-1] if _ACTIVE else WaitCounter()


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, PretendTensor) else value


class _Module(types.ModuleType):
    """What PyTorch asks of the module of a device."""

    is_available = staticmethod(lambda: True)
    is_initialized = staticmethod(lambda: True)
    _lazy_init = staticmethod(lambda: None)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    _is_in_bad_fork = staticmethod(lambda: False)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float16, torch.bfloat16])
    get_rng_state = staticmethod(lambda device=None: torch.zeros(8, dtype=torch.uint8))
    set_rng_state = staticmethod(lambda state, device=None: None)


def register() -> None:
    """Make the pretend device known to PyTorch, once a process; nothing takes that back, so tests have a process for it."""
    if not hasattr(torch, NAME):
        _setup_privateuseone_for_python_backend(NAME, backend_module=_Module(f"torch.{NAME}"))
        torch.__future__.set_overwrite_module_params_on_conversion(True)


@contextmanager
def counted() -> Iterator[WaitCounter]:
    """Counts what happens within, on the pretend device."""
    register()
    counter = WaitCounter()
    _ACTIVE.append(counter)
    try:
        with _Creation(), counter, torch.no_grad():
            yield counter
    finally:
        _ACTIVE.pop()


def selftest() -> None:
    """Raise SystemExit unless the counter notices every kind of wait and copy, and none where there is none."""
    kinds: dict[str, tuple[Callable[[Tensor], Any], Cost]] = {
        "item": (lambda x: x[0].item(), Cost(1)),
        "float": (lambda x: float(x[0]), Cost(1)),
        "bool": (lambda x: bool((x > 0).any()), Cost(1)),
        "if": (lambda x: 1 if x[0] else 0, Cost(1)),
        "tolist": (lambda x: x.tolist(), Cost(1)),
        "cpu": (lambda x: x.cpu(), Cost(1)),
        "to": (lambda x: x.to("cpu", torch.float64), Cost(1)),
        "numpy": (lambda x: x.numpy(), Cost(1)),
        "copy_": (lambda x: torch.zeros(3).copy_(x), Cost(1)),
        "nonzero": (lambda x: x.nonzero(), Cost(1)),
        "where of one argument": (lambda x: torch.where(x > 0), Cost(1)),
        "boolean mask": (lambda x: x[x > 1], Cost(1)),
        "masked_select": (lambda x: torch.masked_select(x, x > 1), Cost(1)),
        "equal": (lambda x: torch.equal(x, x + 1), Cost(1)),
        "allclose": (lambda x: torch.allclose(x, x + 1), Cost(1)),
        "unique": (lambda x: torch.unique(x), Cost(1)),
        "repeat_interleave": (lambda x: torch.repeat_interleave(x.long()), Cost(1)),
        "copy of a list": (lambda x: torch.tensor([1.0, 2.0], device=x.device), Cost(0, 1)),
        "copy of a tensor": (lambda x: torch.ones(3).to(x), Cost(0, 1)),
        "index of the host": (lambda x: x[torch.tensor([0, 1])], Cost(0, 1)),
        "arithmetic": (lambda x: torch.where(x > 1, 2 * x, x).sum(), Cost()),
        "views": (lambda x: x[:2].view(1, 2).expand(3, 2), Cost()),
        "fill": (lambda x: torch.full((3,), 2.0, device=x.device), Cost()),
        "index": (lambda x: x[torch.arange(2, device=x.device)], Cost()),
    }
    wrong = []
    with counted() as counter:
        values = torch.arange(3.0, device=DEVICE)
        for name, (action, expected) in kinds.items():
            before = counter.cost
            action(values)
            noticed = counter.cost.minus(before)
            if noticed[:2] != expected[:2]:
                wrong.append(f"{name}: {noticed} instead of {expected}")
        try:
            values + torch.ones(3)
            wrong.append("a tensor of the host among those of the device was not refused")
        except RuntimeError:
            pass
    if wrong:
        raise SystemExit("the counter is wrong: " + "; ".join(wrong))


class Counted(NamedTuple):
    """One run: what attaching and the run asked for, its number of steps, and the lines of saferedir that waited."""

    attach: Cost
    run: Cost
    steps: int
    where: Counter[str]


def run_cost(pipe: Any, case: Any, guard: Any, steps: int, prompts: list[str]) -> Counted:
    """A run on the pretend device; `guard` None for the bare pipeline.

    Image-to-image is asked for so many steps that about `steps` of them are left; families round in their own ways.
    """
    strength = case.settings.get("strength", 1.0)
    asked = next(count for count in range(steps, 20 * steps) if int(count * strength) == steps)
    from tests.tiny_pipelines import run

    import saferedir as sr

    with counted() as counter:
        attached = None if guard is None else sr.attach(pipe, guard)
        attaching = counter.cost
        try:
            run(case, pipe, prompts, steps=asked)
        finally:
            if attached is not None:
                attached.detach()
        made = int(getattr(pipe, "_num_timesteps", steps))
        return Counted(attaching, counter.cost.minus(attaching), made, counter.where)


def split(short: Counted, long: Counted) -> tuple[Cost, Cost]:
    """(of one step, of the rest of a run) of two runs that differ in their number of steps."""
    step = long.run.minus(short.run).times(1 / (long.steps - short.steps))
    return step, short.run.minus(step.times(short.steps))


def rows(
    pipelines: Sequence[str], guards: Sequence[str], batch: int = 1, steps: tuple[int, int] = (3, 4)
) -> Iterator[dict[str, Any]]:
    """One row for each pipeline and guard: waits, copies and launches of a guarded step, run and attach beside the bare ones."""
    from tests.contract.guards import GUARDS
    from tests.newer_pipelines import EVERY

    prompts = ["a star", "the moon", "a cat", "red", "b", "c", "d", "e"][:batch]
    for name in pipelines:
        case = EVERY[name]
        pipe = case.build()
        chosen = {each: GUARDS[each.removesuffix(ANCHORED)] for each in guards}
        made = {each: guard.make(pipe, case) for each, guard in chosen.items() if not guard.lacks(case)}
        made |= {each: guard.with_anchors("the moon") for each, guard in made.items() if each.endswith(ANCHORED)}
        with counted():
            pipe.to(DEVICE)
        try:
            run_cost(pipe, case, None, 2, prompts)  # what is made once and kept
            bare = split(*(run_cost(pipe, case, None, count, prompts) for count in steps))
        except (NotImplementedError, RuntimeError) as refusal:  # what the pretend device cannot do, and a real one can
            yield {"pipeline": name, "guard": "bare", "refused": str(refusal).splitlines()[0][:100]}
            continue
        yield row_of(name, "bare", batch, bare, Cost(), {})
        for label, guard in made.items():
            try:
                run_cost(pipe, case, guard, 2, prompts)  # networks go to the device once
                measured = [run_cost(pipe, case, guard, count, prompts) for count in steps]
            except (SaferedirError, NotImplementedError) as refusal:
                yield {"pipeline": name, "guard": label, "refused": str(refusal).splitlines()[0][:200]}
                continue
            step, rest = split(*measured)
            guarded = step.minus(bare[0]), rest.minus(bare[1])
            last = measured[-1]
            where = last.where - Counter({key: 10**9 for key in last.where if key.endswith("the pipeline")})
            yield row_of(name, label, batch, guarded, last.attach, dict(where.most_common(12)))


def row_of(
    pipeline: str, guard: str, batch: int, costs: tuple[Cost, Cost], attach: Cost, where: dict[str, int]
) -> dict[str, Any]:
    step, rest = costs
    return {
        "pipeline": pipeline,
        "guard": guard,
        "batch": batch,
        "step": step._asdict(),
        "run": rest._asdict(),
        "attach": attach._asdict(),
        "where": where,
    }


def text_of(row: dict[str, Any], *, with_where: bool) -> str:
    """One line of the table, and the lines that wait below it."""
    head = f"{row['pipeline']:16} {row['guard']:16}"
    if "refused" in row:
        return f"{head} refused: {row['refused']}"
    parts = [
        f"{name} {row[name]['waits']:g} waits {row[name]['copies']:g} copies {row[name]['launches']:g} launches"
        for name in ("step", "run", "attach")
    ]
    lines = [f"{head} {'; '.join(parts)}"]
    lines += [f"    {count} {line}" for line, count in row["where"].items()] if with_where else []
    return "\n".join(lines)


def waits_table(measured: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line a pipeline; the most that any guard adds to its waits, and which guards do."""
    lines = ["| pipeline | guards | waits a step | a run | by | an attach | saferedir's kernels a step |"]
    lines.append("|---" * 7 + "|")
    by_pipeline: dict[str, list[dict[str, Any]]] = {}
    for row in measured:
        if row["guard"] != "bare" and "refused" not in row:
            by_pipeline.setdefault(row["pipeline"], []).append(row)
    for name, of in by_pipeline.items():
        run = max(row["run"]["waits"] for row in of)
        by = [row["guard"] for row in of if row["run"]["waits"] == run]
        others = "all" if len(by) == len(of) else ", ".join(by) if len(by) < 4 else f"{len(by)} of them"
        step, attaching = (max(row[part]["waits"] for row in of) for part in ("step", "attach"))
        kernels = next((f"{row['step']['launches']:.0f}" for row in of if row["guard"] == "saferedir"), "–")
        lines.append(
            f"| {name} | {len(of)} | {max(step, 0):.0f} | {run:.0f} | {others} | {attaching:.0f} | {kernels} |"
        )
    refused = [row for row in measured if "refused" in row]
    lines += [
        "",
        f"{sum(map(len, by_pipeline.values()))} pairs of pipeline and guard; {len(refused)} do not go together, or not here.",
    ]
    return "\n".join(lines)


def table(measured: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line a guard, a column a pipeline; kernels a step, and waits where there are some."""
    bare = {row["pipeline"]: row for row in measured if row["guard"] == "bare"}
    cells = {(row["guard"], row["pipeline"]): row for row in measured if row["guard"] != "bare"}
    guards = list(dict.fromkeys(guard for guard, _ in cells))
    lines = [f"| kernels a step | {' | '.join(bare)} |", "|---" * (len(bare) + 1) + "|"]
    own = (f"{row['step']['launches']:.0f} ({row['step']['waits']:.0f} waits)" for row in bare.values())
    lines.append(f"| the bare pipeline's own | {' | '.join(own)} |")
    for guard in guards:
        lines.append(f"| {guard} | {' | '.join(_cell(cells.get((guard, name))) for name in bare)} |")
    done = [row for row in cells.values() if "refused" not in row]
    most = {part: max((row[part]["waits"] for row in done), default=0) for part in ("step", "run", "attach")}
    lines += ["", f"Most waits beside the bare pipeline's: {most['step']:.0f} a step, {most['run']:.0f} a run, "]
    lines[-1] += f"{most['attach']:.0f} an attach; {len(done)} pairs of guard and family."
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None) -> str:
    """Kernels of a step, waits after them where there are some; "–" where the guard does not fit the family."""
    if row is None or "refused" in row:
        return "–"
    waits = row["step"]["waits"]
    return f"{row['step']['launches']:.0f}" + (f" ({waits:.0f} waits)" if waits > 0 else "")


def main() -> None:
    from tests.contract.guards import GUARDS
    from tests.newer_pipelines import EVERY
    from tests.tiny_pipelines import PIPELINES

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pipelines", nargs="+", default=["sd", "flux"], choices=list(EVERY))
    parser.add_argument(
        "--guards", nargs="+", default=list(GUARDS), choices=[*GUARDS, *(f"{each}{ANCHORED}" for each in REDIRECTORS)]
    )
    parser.add_argument("--all", action="store_true", help="every pipeline of the contract tests")
    parser.add_argument("--families", action="store_true", help="a pipeline of every family, and image-to-image")
    parser.add_argument("--methods", action="store_true", help="the registered methods, and one that reads everything")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs=2, default=(3, 4), help="of the two runs that are compared")
    parser.add_argument("--where", action="store_true", help="print the lines of saferedir that wait")
    parser.add_argument(
        "--selftest", action="store_true", help="first see to it that the counter notices every kind of wait"
    )
    parser.add_argument(
        "--json", type=Path, help="write the rows to this file; pipelines that it has already are not counted again"
    )
    parser.add_argument("--table", action="store_true", help="print all rows as a table of Markdown at the end")
    parser.add_argument("--waits", action="store_true", help="print the waits of all pipelines as a table at the end")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.selftest:
        selftest()
    path: Path | None = options.json
    measured = json.loads(path.read_text()) if path is not None and path.is_file() else []
    finished = {row["pipeline"] for row in measured}
    if options.methods:
        options.guards = [name for name, case in GUARDS.items() if case.is_method or name == "watcher"]
    of_families = {case.family: name for name, case in reversed(EVERY.items())}
    chosen = [*of_families.values(), *(name for name in EVERY if name.endswith(("img2img", "-true-cfg")))][::-1]
    for name in list(PIPELINES) if options.all else chosen if options.families else options.pipelines:
        if name in finished:
            continue
        for row in rows([name], options.guards, options.batch, tuple(options.steps)):
            measured.append(row)
            print(text_of(row, with_where=options.where), flush=True)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if options.waits:
        print(waits_table(measured))
    if options.table:
        print(table(measured))


if __name__ == "__main__":
    main()
