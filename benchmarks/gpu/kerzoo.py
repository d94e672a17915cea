"""KerZOO on one GPU: the sweep against its reference, the speed and memory of a step on an OPT-2.7B shape beside the public
MeZO loop and the floor, and the comparison of estimators at equal forward passes.

    PYTHONPATH=core/src:sdk/src:plugins/testbed/src:plugins/kerzoo/src python3 benchmarks/gpu/kerzoo.py \
        --data FOLDER --out kerzoo.json [--quick] [--parts check,speed,compare,everything]

FOLDER holds glue/, text/ and models/stories260k.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import platform
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part / "src") for part in ("core", "sdk", "plugins/testbed", "plugins/kerzoo")]

import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from planish_kerzoo import noise  # noqa: E402
from planish_kerzoo.benchmark import Budget, compare  # noqa: E402
from planish_kerzoo.layout import lay_out  # noqa: E402
from planish_kerzoo.log import RunLog, fingerprint, replay  # noqa: E402
from planish_kerzoo.noise import Distribution  # noqa: E402
from planish_kerzoo.optimizer import KerZOO  # noqa: E402
from planish_kerzoo.peer import MeZOLoop  # noqa: E402
from planish_kerzoo.sweep import Operation, Sweeper, Work, make_tables, reference  # noqa: E402
from planish_kerzoo.toy import RUNS, adapt  # noqa: E402

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
    from transformers import OPTConfig, OPTForCausalLM

    size: Any = (
        {
            "num_hidden_layers": 2,
            "hidden_size": 256,
            "num_attention_heads": 4,
            "ffn_dim": 1024,
            "word_embed_proj_dim": 256,
        }
        if quick
        else {
            "num_hidden_layers": 32,
            "hidden_size": 2560,
            "num_attention_heads": 32,
            "ffn_dim": 10240,
            "word_embed_proj_dim": 2560,
        }
    )
    config = OPTConfig(vocab_size=512 if quick else 50272, max_position_embeddings=2048, **size)
    half = torch.float16 if device != "cpu" else torch.float32
    torch.set_default_dtype(half)
    try:
        with torch.device(device):
            model = OPTForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)
    model.config.use_cache = False
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

        def closure(ids: Tensor = ids) -> Tensor:
            return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]

        found: Result = {}
        result[f"{tokens} tokens"] = found
        for part in (_floor, _ours, _public_loop):
            try:
                found |= part(model, closure, rounds, device)
            except Exception:
                found[f"traceback{part.__name__}"] = traceback.format_exc()
            keep(result)
        if "loop_ms" in found and "step_gaussian_ms" in found:
            floor = found["two_forwards_ms"]["median"] + 2 * found["sweep_ms"]["median"]
            step = found["step_gaussian_ms"]["median"]
            found |= {
                "floor_ms": floor,
                "step_over_floor": step / floor,
                "loop_over_step": found["loop_ms"]["median"] / step,
                "memory_over_inference": found["memory_step"] / max(found["memory_inference"], 1),
            }
        keep(result)
    return result


def _floor(model: nn.Module, closure: Callable[[], Tensor], rounds: int, device: str) -> Result:
    weights = sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        return {
            "memory_inference": _peak(device, closure),
            "two_forwards_ms": _median(lambda: (closure(), closure()), rounds, device),
            "sweep_ms": _sweep_time(weights, next(model.parameters()).dtype, rounds, device),
        }


def _ours(model: nn.Module, closure: Callable[[], Tensor], rounds: int, device: str) -> Result:
    found: Result = {}
    for name, options in PROGRAMS.items():
        optimizer = KerZOO(model, defer=True, **options)
        step = functools.partial(optimizer.step, closure)
        for _ in range(3):
            step()
        if name == "gaussian":
            found["no_synchronisation"] = _no_sync(step, device)
            before = optimizer.sweeps
            found["memory_step"] = _peak(device, step)
            found["sweeps_a_step"] = (optimizer.sweeps - before) / (3 if device != "cpu" else 1)
            found["memory_trace"] = _trace(device, step)
            found |= _sweeps(Sweeper(optimizer.works, "gaussian"), rounds, device)
        found[f"step_{name}_ms"] = _median(step, rounds, device)
        optimizer.finish()
    return found


def _sweeps(sweeper: Sweeper, rounds: int, device: str) -> Result:
    one, two = Operation(1, 0, (1e-9,)), Operation(2, 0, (1e-9,))
    return {
        "one_operation_sweep_ms": _median(lambda: sweeper(one, None), rounds, device),
        "two_operation_sweep_ms": _median(lambda: sweeper(one, two), rounds, device),
    }


def _public_loop(model: nn.Module, closure: Callable[[], Tensor], rounds: int, device: str) -> Result:
    loop = MeZOLoop(model, 1e-9, 1e-5)
    step = functools.partial(loop.step, closure)
    for _ in range(2):
        step()
    return {"memory_loop": _peak(device, step, 2), "loop_ms": _median(step, max(3, rounds - 2), device)}


def _median(program: Callable[[], Any], rounds: int, device: str) -> dict[str, float]:
    for _ in range(2):
        program()
    times = []
    for _ in range(rounds):
        if device == "cpu":
            start = time.perf_counter()
            program()
            times.append((time.perf_counter() - start) * 1e3)
            continue
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        program()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high, "rounds": rounds}


def _sweep_time(elements: int, dtype: torch.dtype, rounds: int, device: str) -> dict[str, float]:
    flat = torch.zeros(elements, dtype=dtype, device=device)
    return _median(lambda: flat.add_(1e-8), rounds, device)


def _peak(device: str, program: Callable[[], Any], calls: int = 3) -> int:
    if device == "cpu":
        program()
        return 0
    _clean(device)
    torch.cuda.reset_peak_memory_stats()
    for _ in range(calls):
        program()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated()


def _trace(device: str, program: Callable[[], Any]) -> list[dict[str, int]]:
    """Bytes allocated after, and at the peak of, each of five steps."""
    trace: list[dict[str, int]] = []
    for _ in range(5 if device != "cpu" else 0):
        torch.cuda.reset_peak_memory_stats()
        program()
        torch.cuda.synchronize()
        trace.append({"allocated": torch.cuda.memory_allocated(), "peak": torch.cuda.max_memory_allocated()})
    return trace


def _no_sync(program: Callable[[], Any], device: str) -> bool | str:
    """Whether a step waits nowhere for the device: torch raises where it would."""
    if device == "cpu":
        return "not measured"
    torch.cuda.set_sync_debug_mode("error")
    try:
        program()
    except RuntimeError as error:
        return f"{error}\n{traceback.format_exc()[-600:]}"
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return True


def _clean(device: str) -> None:
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


# ---- the script -------------------------------------------------------------------------------------------------------


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--parts", default="check,speed,compare")
    parser.add_argument(
        "--seconds", type=float, default=180, help="compare: start nothing that would end later"
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

    programs: dict[str, Callable[[Callable[[Result], None]], Result]] = {}
    if "speed" in options.parts:
        programs["speed"] = lambda keep: speed(device, quick, keep)
    if "check" in options.parts and device != "cpu":
        programs["check_noise"] = lambda keep: check_noise(device, 1 << (20 if quick else 26))
        programs["check_offsets"] = lambda keep: check_offsets(device, quick)
        programs["check_replay"] = lambda keep: check_replay(device)
        programs["check_sweep"] = lambda keep: check_sweep(device, "everything" in options.parts)
    if "compare" in options.parts:
        budget = Budget.smoke() if quick else Budget.full()
        until = started + options.seconds
        programs["toy"] = lambda keep: toy(options.data, device, quick)
        programs["compare"] = lambda keep: compare(options.data, budget, device, keep, until)
    for name, program in programs.items():
        start = time.perf_counter()
        write = keep(name)
        try:
            found = program(write)
            state = "OK" if found.get("holds", True) else "DOES NOT HOLD"
        except Exception:
            found = {**result["parts"].get(name, {}), "traceback": traceback.format_exc()}
            state = found["traceback"]
        found["seconds"] = time.perf_counter() - start
        write(found)
        print(f"{name}: {state} ({found['seconds']:.1f} s)", flush=True)
        _clean(device)


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
