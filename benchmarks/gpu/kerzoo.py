"""KerZOO on one GPU: the sweep against its reference, the speed and memory of a step on an OPT-2.7B shape beside the public
MeZO loop and the floor, the comparison of estimators at equal forward passes, and two GPUs beside one.

    PYTHONPATH=core/src:sdk/src:plugins/testbed/src:plugins/kerzoo/src python3 benchmarks/gpu/kerzoo.py \
        --data FOLDER --out kerzoo.json [--quick] [--parts check,speed,toy,compare,again,everything,ranks]

FOLDER holds glue/, text/ and models/stories260k, which toy, compare and again read. ranks needs two GPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import math
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part / "src") for part in ("core", "sdk", "plugins/testbed", "plugins/kerzoo")]

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from kerzoo_ranks import ranks  # noqa: E402
from kerzoo_timing import clean, median, no_sync, opt, peak, trace  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from planish.context import Context  # noqa: E402
from planish.data import Tensors  # noqa: E402
from planish.model import TorchModel  # noqa: E402
from planish.tasks import Classification  # noqa: E402
from planish_kerzoo import noise  # noqa: E402
from planish_kerzoo.benchmark import compare, population  # noqa: E402
from planish_kerzoo.capture import CapturedLoss  # noqa: E402
from planish_kerzoo.config import KerZOOConfig  # noqa: E402
from planish_kerzoo.contest import Budget  # noqa: E402
from planish_kerzoo.layout import lay_out  # noqa: E402
from planish_kerzoo.log import RunLog, fingerprint, replay  # noqa: E402
from planish_kerzoo.noise import Distribution  # noqa: E402
from planish_kerzoo.optimizer import KerZOO  # noqa: E402
from planish_kerzoo.peer import MeZOLoop  # noqa: E402
from planish_kerzoo.population import Population  # noqa: E402
from planish_kerzoo.sweep import Operation, Sweeper, Work, make_tables, reference, triton_kernels  # noqa: E402
from planish_kerzoo.toy import RUNS, adapt  # noqa: E402
from planish_kerzoo.wiring import apply  # noqa: E402

Result = dict[str, Any]
PROGRAMS: dict[str, Result] = {
    "gaussian": {},
    "rademacher": {"u": "rademacher"},
}


# ---- correctness ------------------------------------------------------------------------------------------------------


def check_sweep(device: str, everything: bool) -> Result:
    """Kernel against reference, bit for bit, on shapes with odd tails; a skipped step restores.

    Triton takes seconds to compile each variant, so that without ``everything`` three stand for the others.
    """
    found = {}
    d = torch.tensor([0.37], device=device)
    update = Operation(0xFEDCBA9876543210, 3, (0.01,), (-0.02,), d, keeps=True)
    probe = Operation(12345, 0, (0.005,))
    skipped = Operation(77, 3, (0.01,), (-0.02,), d * torch.nan, keeps=True)
    half, brain, full = torch.float16, torch.bfloat16, torch.float32
    cases: list[tuple[torch.dtype, torch.dtype | None, Distribution]] = [
        (half, None, "gaussian"),
        (brain, None, "gaussian"),
        (half, full, "gaussian"),
    ]
    if everything:
        cases = [
            (t, c, u)
            for t in (full, half, brain)
            for c in (None, t, full)
            for u in ("gaussian", "rademacher")
        ]  # type: ignore[misc]
    for dtype, kept, u in cases:
        results = []
        for by_kernel in (False, True):
            works = _works(device, dtype, kept)
            sweeper = Sweeper(works, u, True)
            alone = [(probe, None), (update, None)] if everything else []
            for first, second in [(update, probe), (skipped, probe), *alone]:
                for table in make_tables(works) if by_kernel else ():
                    table.launch(first, second, u, True)
                for work in () if by_kernel else works:
                    reference(work, first, second, sweeper.directions)
            results.append([w.segment.local() for w in works] + [w.copy for w in works if w.copy is not None])
        key = f"{_short(dtype)}, copy {_short(kept)}, {u}"
        found[key] = all(torch.equal(x, y) for x, y in zip(*results, strict=True))
    return {"bit_equal": found, "holds": all(found.values())}


def _works(device: str, dtype: torch.dtype, kept: torch.dtype | None) -> list[Work]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"b": (37, 53), "a": (3, 4096), "c": (5,), "d": (1, 300_001)}
    values = {
        name: torch.randn(shape, generator=generator).to(device, dtype) for name, shape in shapes.items()
    }
    segments = lay_out([(name, nn.Parameter(value), 0) for name, value in values.items()])
    copies = [s.local().to(kept, copy=True) if kept else None for s in segments]
    return [Work(s, 0, copy, True) for s, copy in zip(segments, copies, strict=True)]


def check_noise(device: str, elements: int) -> Result:
    """Fast normals beside the tables; tables and Rademacher on GPU beside CPU; moments against float64."""
    chunks = elements // noise.CHUNK
    key = torch.tensor([99])
    exact = noise.directions(key.to(device), 7, chunks, "gaussian")[0]
    same = torch.equal(
        exact.cpu()[: 64 * noise.CHUNK],
        noise.directions(key, 7, min(64, chunks), "gaussian")[0][: len(exact)],
    )
    drawn = _drawn(device, chunks, exact=False)
    difference = (drawn - exact).abs()
    z = drawn.double()
    moments = {k: float((z**k).mean()) for k in (1, 2, 3, 4)}
    error = {
        2: abs(moments[2] - 1) * (chunks * noise.CHUNK / 2) ** 0.5,
        4: abs(moments[4] - 3) * (chunks * noise.CHUNK / 96) ** 0.5,
    }
    return {
        "tables_equal_cpu": same,
        "largest_difference_fast_to_tables": float(difference.max()),
        "mean_difference_fast_to_tables": float(difference.mean()),
        "elements": chunks * noise.CHUNK,
        "moments": moments,
        "standard_errors_of_second_and_fourth": error,
        "holds": same and float(difference.max()) < 1e-4 and max(error.values()) < 5,
    }


def _drawn(device: str, chunks: int, exact: bool) -> Tensor:
    """The kernel's own directions: a sweep over zeros with coefficient 1. The vector starts at chunk 7."""
    padding = nn.Parameter(torch.zeros(7 * noise.CHUNK, device=device))
    target = nn.Parameter(torch.zeros(chunks * noise.CHUNK, device=device))
    segments = lay_out([("a", padding, 0), ("b", target, 0)])
    sweeper = Sweeper([Work(s, 0, None, False) for s in segments], "gaussian", exact)
    sweeper(Operation(99, 0, (1.0,)), None)
    return target.detach()


def check_offsets(device: str, quick: bool) -> Result:
    """A tensor with more than 2^32 elements: its last chunks are the directions at those offsets."""
    size = (1 << 20 if quick else 1 << 32) + 5 * noise.CHUNK + 17
    weights = nn.Parameter(torch.zeros(size, dtype=torch.float16, device=device))
    work = Work(lay_out([("w", weights, 0)])[0], 0, None, False)
    Sweeper([work], "gaussian", True)(Operation(3, 0, (1.0,)), None)
    first = size // noise.CHUNK - 4
    expected = noise.directions(torch.tensor([3], device=device), first, 5, "gaussian")[0]
    tail = weights.detach()[first * noise.CHUNK :]
    middle = weights.detach()[: 4 * noise.CHUNK]
    start = noise.directions(torch.tensor([3], device=device), 0, 4, "gaussian")[0].half()
    return {
        "elements": size,
        "holds": torch.equal(tail, expected[: len(tail)].half()) and torch.equal(middle, start),
    }


def check_replay(device: str) -> Result:
    """40 steps in float32, deferred and not, and the replay of the log: one digest."""
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(1)).to(device)
    digests = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log"
        for defer in (False, True, None):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 4)).to(device)
            if defer is None:
                replay(path, KerZOO(net, lr=1e-3))
            else:
                optimizer = KerZOO(net, lr=1e-3, defer=defer, log=None if defer else RunLog(path))
                for _ in range(40):
                    optimizer.step(lambda net=net: net(x).square().mean())
                optimizer.finish()
            digests.append(fingerprint(lay_out([(n, p, 0) for n, p in net.named_parameters()])))
    return {"digests": digests, "holds": len(set(digests)) == 1}


def check_capture(device: str) -> Result:
    """Captured losses beside eager ones while weights move; what cannot be captured is evaluated as it is, after one warning."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, 4)).to(device).eval()
    batches = [torch.randn(size, 32, device=device) for size in (8, 24, 8)]

    def loss(x: Tensor) -> Tensor:
        return net(x).square().mean()  # type: ignore[no-any-return]

    def agree(captured: CapturedLoss, values: Sequence[Tensor] = batches) -> bool:
        bound = [captured.bind(x) for x in values]
        with torch.no_grad():
            return all(
                torch.allclose(f(), loss(x), rtol=1e-6)
                for _ in range(2)
                for f, x in zip(bound, values, strict=True)
            )

    captured = CapturedLoss(net, loss)
    found: Result = {"replays": agree(captured) and captured.refused is None}
    with torch.no_grad():
        net[0].weight.mul_(1.5)
    found["after weights moved"] = agree(captured)
    net.cpu().to(device)
    found["after weights got other memory"] = agree(captured)
    unfit = {
        "dropout": (lambda x: net.train()(x).mean()),
        "waits for the device": (lambda x: net.eval()(x).mean() * (1 if float(x[0, 0]) > 0 else 2)),
        "shape from values": (lambda x: x[x > 0].mean()),
    }
    for name, program in unfit.items():
        refused = CapturedLoss(net, program)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            values = [float(refused.bind(batches[0])()) for _ in range(3)]
        found[name] = {
            "reason": refused.refused,
            "warnings": len(caught),
            "finite": all(map(math.isfinite, values)),
        }
    net.eval()
    found["a graph after those"] = agree(CapturedLoss(net, loss))
    fit = all(value is True for value in found.values() if isinstance(value, bool))
    return found | {
        "holds": fit and all(found[name]["reason"] and found[name]["warnings"] == 1 for name in unfit)
    }


def check_stage(device: str) -> Result:
    """The stage with and without a graph, and the replay of its log."""
    x = torch.linspace(-1, 1, 256).view(64, 4)
    values = {"train_x": x, "train_y": (x[:, 0] > 0).long(), "test_x": x, "test_y": (x[:, 0] > 0).long()}
    task = Classification(data=Tensors(values=values), input="input")
    trained = {}
    with tempfile.TemporaryDirectory() as folder:
        for graph in (True, False, None):
            torch.manual_seed(0)
            net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(device)
            config = KerZOOConfig(steps=60, lr=3e-2, kernel="nodes3", unit=20, graph=bool(graph))
            path = Path(folder) / str(graph)
            if graph is None:
                replay(Path(folder) / "True" / "kerzoo.log", KerZOO(net, lr=3e-2, kernel="nodes3"))
            else:
                path.mkdir()
                context = Context(task, 0, device, path)
                net = apply(TorchModel(net, "module", None), config, context).module
                trained[f"facts, graph {graph}"] = context.facts
            trained[str(graph)] = [p.detach().clone() for p in net.parameters()]
    one, two, again = trained.pop("True"), trained.pop("False"), trained.pop("None")
    difference = max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))
    replayed = all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    return {
        **trained,
        "largest difference": difference,
        "replayed": replayed,
        "holds": replayed and difference < 1e-2,
    }


def check_engine(data: Path, device: str) -> Result:
    """The comparison's model: directions to the bit; differences of losses in TF32 and float32 beside float64, relative to
    their own size."""
    keys = torch.tensor([99, noise.as_int64(0xFEDCBA9876543210)], device=device)
    kernels = triton_kernels()
    assert kernels is not None
    same = all(
        torch.equal(kernels.directions(keys, 7, 5, u), noise.directions(keys, 7, 5, u))
        for u in ("gaussian", "rademacher")
    )
    found: Result = {"directions equal": same}
    budget = dataclasses.replace(Budget.full(), tasks=("cb",), sizes={"train": 64, "test": 16})
    for model in budget.plans:
        people, _ = population(model, data, budget, device)
        direction = noise.directions(keys[:1], 0, people.shape.size // noise.CHUNK, "gaussian")
        moved = people.start + 1e-3 * torch.cat([direction.roll(7919 * k, 1) for k in range(8)])
        other = 2 * people.start - moved
        exact = _batch_losses(people, moved.double()) - _batch_losses(people, other.double())
        entry = {"size of d": float(exact.square().mean().sqrt() / 2e-3)}
        for precision in ("highest", "high"):
            torch.set_float32_matmul_precision(precision)
            error = _batch_losses(people, moved) - _batch_losses(people, other) - exact
            entry[f"error, {precision}"] = float((error.square().mean() / exact.square().mean()).sqrt())
        torch.set_float32_matmul_precision("highest")
        found[model] = entry
    return found | {"holds": same and all(found[model]["error, highest"] < 1e-3 for model in budget.plans)}


@torch.no_grad()
def _batch_losses(people: Population, weights: Tensor) -> Tensor:
    """Losses of the first 16 examples, float64."""
    task = people.tasks[0]
    rows = torch.arange(16, device=weights.device).expand(len(weights), -1)
    words = task.words.expand(len(weights), -1)
    logits = people.shape.answers(weights, task.ids[rows], task.last[rows], words).double()
    losses = F.cross_entropy(logits.flatten(0, 1), task.label[rows].flatten(), reduction="none")
    return losses.view(len(weights), -1).mean(1)


def toy(data: Path, device: str, quick: bool) -> Result:
    """stories260k on Shakespeare by the optimizer itself, beside what was measured elsewhere."""
    found: Result = {}
    for name, (_, elsewhere) in RUNS.items():
        for seed in (0, 1):
            start, end = adapt(data / "models" / "stories260k", data, name, seed, device, 8 if quick else 600)
            found[f"{name}, seed {seed}"] = {"start": start, "end": end, "elsewhere": elsewhere[seed]}
    return found


# ---- speed and memory -------------------------------------------------------------------------------------------------


def speed(device: str, quick: bool, keep: Callable[[Result], None]) -> Result:
    """A step of ours, the public loop and the floor on one model, at 64 and 256 tokens."""
    half = torch.float16 if device != "cpu" else torch.float32
    model = opt("tiny" if quick else "2.7B", device, half)
    rounds = 4 if quick else 12
    weights = sum(p.numel() for p in model.parameters())
    result: Result = {
        "parameters": weights,
        "tensors": len(list(model.parameters())),
        "batch": 16,
        "rounds": rounds,
    }
    for tokens in (8, 16) if quick else (64, 256):
        ids = torch.randint(4, 500, (16, tokens), generator=torch.Generator().manual_seed(0)).to(device)
        found: Result = {}
        result[f"{tokens} tokens"] = found
        for name, part in _parts_of_speed(model, ids, rounds, device).items():
            try:
                found[name] = part()
            except Exception:  # the other parts still run, and what failed does not hold
                result["holds"] = False
                found[f"traceback, {name}"] = traceback.format_exc()
            keep(result)
            clean(device)
        with contextlib.suppress(KeyError):
            found |= _bars(found)
        keep(result)
    return result


def _parts_of_speed(model: nn.Module, ids: Tensor, rounds: int, device: str) -> dict[str, Callable[[], Any]]:
    """What is measured at one length, in this order: memory of inference before a graph keeps some for itself."""

    def loss(ids: Tensor) -> Tensor:
        return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]

    captured = CapturedLoss(model, loss)
    eager = functools.partial(loss, ids)
    elements, half = sum(p.numel() for p in model.parameters()), next(model.parameters()).dtype
    return {
        "floor, eager": lambda: _floor(eager, rounds, device),
        "floor, captured": lambda: _floor(captured.bind(ids), rounds, device),
        "sweep_ms": lambda: _sweep_time(elements, half, rounds, device),
        "same losses": lambda: _same_losses(captured, ids, eager),
        "step, eager": lambda: _ours(model, lambda _: eager, ids, rounds, device),
        "step, captured": lambda: _ours(model, captured.bind, ids, rounds, device),
        "captured": lambda: captured.refused or "yes",
        "loop, eager": lambda: _public_loop(model, eager, rounds, device),
    }


def _bars(found: Result) -> Result:
    """The figures that have bars; the floor is that of captured forward passes."""
    sweeps = 2 * found["sweep_ms"]["median"]
    floor = found["floor, captured"]["two_forwards_ms"]["median"] + sweeps
    step, eager = (found[f"step, {kind}"]["gaussian_ms"]["median"] for kind in ("captured", "eager"))
    return {
        "floor_ms": floor,
        "floor_eager_ms": found["floor, eager"]["two_forwards_ms"]["median"] + sweeps,
        "step_over_floor": step / floor,
        "loop_over_step": found["loop, eager"]["ms"]["median"] / step,
        "loop_over_eager_step": found["loop, eager"]["ms"]["median"] / eager,
        "memory_over_inference": found["step, captured"]["memory"]["reserved"]
        / max(1, found["floor, eager"]["memory"]["reserved"]),
        "memory_over_inference_eager": found["step, eager"]["memory"]["allocated"]
        / max(1, found["floor, eager"]["memory"]["allocated"]),
    }


def _floor(closure: Callable[[], Tensor], rounds: int, device: str) -> Result:
    with torch.no_grad():
        return {
            "memory": peak(device, closure),
            "two_forwards_ms": median(lambda: (closure(), closure()), rounds, device),
        }


def _same_losses(captured: CapturedLoss, ids: Tensor, closure: Callable[[], Tensor]) -> Result:
    """A replayed loss beside an eager one, and whether two replays agree to the bit."""
    with torch.no_grad():
        one, two = captured.bind(ids)(), captured.bind(ids)()
        other = captured.bind(ids.flip(0).roll(1, 1))()
        return {
            "captured": float(one),
            "eager": float(closure()),
            "repeats": bool(one == two),
            "another batch": float(other),
        }


def _ours(
    model: nn.Module, bind: Callable[[Tensor], Callable[[], Tensor]], ids: Tensor, rounds: int, device: str
) -> Result:
    found: Result = {}
    for name, options in PROGRAMS.items():
        optimizer = KerZOO(model, defer=True, **options)

        def step(optimizer: KerZOO = optimizer) -> None:
            optimizer.step(bind(ids))

        for _ in range(3):
            step()
        if name == "gaussian":
            found["no_synchronisation"] = no_sync(step, device)
            before = optimizer.sweeps
            found["memory"] = peak(device, step)
            found["sweeps_a_step"] = (optimizer.sweeps - before) / (3 if device != "cpu" else 1)
            found["memory_trace"] = trace(device, step)
            found |= _sweeps(Sweeper(optimizer.works, "gaussian"), rounds, device)
        found[f"{name}_ms"] = median(step, rounds, device)
        optimizer.finish()
    return found


def _sweeps(sweeper: Sweeper, rounds: int, device: str) -> Result:
    one, two = Operation(1, 0, (1e-9,)), Operation(2, 0, (1e-9,))
    return {
        "one_operation_sweep_ms": median(lambda: sweeper(one, None), rounds, device),
        "two_operation_sweep_ms": median(lambda: sweeper(one, two), rounds, device),
    }


def _public_loop(model: nn.Module, closure: Callable[[], Tensor], rounds: int, device: str) -> Result:
    """It gives parameters new memory in every sweep, so that its forward passes cannot be captured."""
    loop = MeZOLoop(model, 1e-9, 1e-5)
    step = functools.partial(loop.step, closure)
    for _ in range(2):
        step()
    return {"memory": peak(device, step, 2), "ms": median(step, max(3, rounds - 2), device)}


def _sweep_time(elements: int, dtype: torch.dtype, rounds: int, device: str) -> dict[str, float]:
    flat = torch.zeros(elements, dtype=dtype, device=device)
    return median(lambda: flat.add_(1e-8), rounds, device)


# ---- the script -------------------------------------------------------------------------------------------------------


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, default=Path(), help="folder of the data")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--parts",
        default="check,speed,toy,compare",
        help="check and all its parts, or some of them by name; everything: all number formats; again: the comparison's verdict on other seeds; ranks: two GPUs beside one",
    )
    parser.add_argument(
        "--seconds", type=float, default=180, help="compare: start nothing that would end later"
    )
    parser.add_argument(
        "--earlier", type=Path, help="a result file; what it holds of compare and again is not run again"
    )
    started = time.monotonic()
    options = parser.parse_args()
    device, quick = options.device, options.quick
    result: Result = {"quick": quick, "device": _name(device), "versions": _versions(), "parts": {}}

    def keep(name: str) -> Callable[[Result], None]:
        def write(found: Result) -> None:
            result["parts"][name] = found
            options.out.write_text(json.dumps(result, indent=1, default=str))

        return write

    budget = Budget.smoke() if quick else Budget.full()
    until = started + options.seconds
    wanted = options.parts.split(",")
    earlier = json.loads(options.earlier.read_text())["parts"] if options.earlier else {}
    programs: dict[str, Callable[[Callable[[Result], None]], Result]] = {
        "speed": lambda keep: speed(device, quick, keep),
        "check_noise": lambda keep: check_noise(device, 1 << (20 if quick else 26)),
        "check_offsets": lambda keep: check_offsets(device, quick),
        "check_replay": lambda keep: check_replay(device),
        "check_capture": lambda keep: check_capture(device),
        "check_stage": lambda keep: check_stage(device),
        "check_engine": lambda keep: check_engine(options.data, device),
        "check_sweep": lambda keep: check_sweep(device, "everything" in wanted),
        "toy": lambda keep: toy(options.data, device, quick),
        "ranks": lambda keep: ranks(device, quick, keep),
        "compare": lambda keep: compare(
            options.data, budget, device, keep, until, earlier.get("compare", {})
        ),
        "again": lambda keep: compare(
            options.data, budget if quick else Budget.again(), device, keep, until, earlier.get("again", {})
        ),
    }
    failed: list[str] = []
    for name, program in programs.items():
        if name not in wanted and name.partition("_")[0] not in wanted:
            continue
        start = time.perf_counter()
        write = keep(name)
        try:
            found = program(write)
            state = "OK" if found.get("holds", True) else "DOES NOT HOLD"
        except Exception:  # the other parts still run; the exit status tells
            found = {**result["parts"].get(name, {}), "traceback": traceback.format_exc()}
            state = found["traceback"]
        found["seconds"] = time.perf_counter() - start
        write(found)
        failed += [name] if state != "OK" else []
        print(f"{name}: {state} ({found['seconds']:.1f} s)", flush=True)
        clean(device)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}; see {options.out}")


def _name(device: str) -> str:
    return torch.cuda.get_device_name() if device != "cpu" else platform.processor()


def _versions() -> dict[str, str]:
    import transformers

    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    try:
        import triton

        versions["triton"] = triton.__version__
    except ImportError:
        pass
    return versions


if __name__ == "__main__":
    main()
