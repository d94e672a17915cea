"""One process beside two, each with a GPU of its own: the same weights to the bit, steps a second, memory of sharded weights.

Started by `kerzoo.py --parts ranks`, which starts this file again under torch.distributed.run, first with one process and then with
two. Every process writes what it found to a file of its own after every job; a job that fails ends its processes, and
the jobs after it are started anew.
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part / "src") for part in ("core", "sdk", "plugins/testbed", "plugins/kerzoo")]

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from kerzoo_timing import clean, median, no_sync, opt, peak  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.distributed.device_mesh import init_device_mesh  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402

from planish_kerzoo.capture import CapturedLoss  # noqa: E402
from planish_kerzoo.log import fingerprint  # noqa: E402
from planish_kerzoo.optimizer import KerZOO  # noqa: E402
from planish_kerzoo.sweep import Operation, Sweeper  # noqa: E402

Result = dict[str, Any]
BATCH = 16


# ---- the processes ----------------------------------------------------------------------------------------------------


class Place:
    """Where one process runs, and on which models.

    Attributes:
        rank, world: its number, and how many there are. device: of the process, such as cuda:1.
        size, small: the model that is timed, and the one whose weights are compared in every number format.
        lengths: tokens of a prompt. rounds: timed steps.
    """

    def __init__(self, kind: str, quick: bool) -> None:
        self.rank, self.world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.kind = kind
        self.device = "cpu" if kind == "cpu" else f"{kind}:{self.rank}"
        self.size, self.small = ("tiny", "tiny") if quick else ("2.7B", "small")
        self.lengths = (8, 16) if quick else (64, 256)
        self.rounds = 4 if quick else 12
        self.half = torch.float16 if kind != "cpu" else torch.float32

    def prompts(self, count: int, tokens: int) -> Tensor:
        """[count, tokens], the same in every process."""
        ids = torch.randint(4, 500, (count, tokens), generator=torch.Generator().manual_seed(0))
        return ids.to(self.device)

    def sharded(self, model: nn.Module) -> nn.Module:
        """Every layer of the decoder a block, and the rest, which is the embedding, another."""
        mesh = init_device_mesh(self.kind, (self.world,))
        for layer in model.model.decoder.layers:  # type: ignore[union-attr]
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return model(input_ids=ids, labels=ids).loss  # type: ignore[no-any-return]


def weights(place: Place, size: str, dtype: torch.dtype, steps: int, capture: bool, shard: bool) -> Result:
    """The digest of the weights after some steps on two halves of a batch: both here, or one in each of two processes."""
    model = opt(size, place.device, dtype)
    model = place.sharded(model) if shard else model
    halves = place.prompts(BATCH, place.lengths[0]).chunk(2)
    mine = [halves[place.rank]] if place.world == 2 else list(halves)
    captured = CapturedLoss(model, functools.partial(loss_of, model))
    bind = captured.bind if capture else functools.partial(functools.partial, loss_of, model)
    optimizer = KerZOO(model, lr=1e-5, seed=7, n=2, defer=True)
    segments = [work.segment for work in optimizer.works]
    start = fingerprint(segments)
    for _ in range(steps):
        closures = [bind(half) for half in mine]
        loss = optimizer.step(lambda closures=closures: torch.stack([closure() for closure in closures]))
    optimizer.finish()
    return {
        "start": start,
        "digest": fingerprint(segments),
        "loss": float(loss),
        "skipped": optimizer.skipped,
        "captured": capture and (captured.refused or f"{captured.graphs} graphs"),
        "elements here": sum(len(segment.local()) for segment in segments),
    }


def formats(place: Place, dtype: torch.dtype) -> Result:
    """Weights of the small model in one number format, data-parallel, eager and captured, and sharded."""
    run = functools.partial(weights, place, place.small, dtype, 4 if place.size == "tiny" else 20)
    found = {"eager": run(False, False), "captured": run(True, False)}
    if place.world > 1:
        found["sharded"] = run(False, True)
    return found


def speed(place: Place) -> Result:
    """A data-parallel step: 16 prompts in every process, and 16 in all."""
    model = opt(place.size, place.device, place.half)
    captured = CapturedLoss(model, functools.partial(loss_of, model))
    optimizer = KerZOO(model, defer=True)
    found: Result = {"parameters": sum(p.numel() for p in model.parameters())}
    for tokens in place.lengths:
        for name, batch in (("weak", BATCH), ("strong", BATCH // place.world)):
            if place.world == 1 and name == "strong":
                continue
            closure = captured.bind(place.prompts(batch, tokens))
            step = functools.partial(optimizer.step, closure)
            found[f"{name}, {tokens} tokens"] = {
                "batch a process": batch,
                "step_ms": median(step, place.rounds, place.kind),
                "two_forwards_ms": median(_quietly(closure, 2), place.rounds, place.kind),
            }
    found["captured"] = captured.refused or f"{captured.graphs} graphs"
    found["no synchronisation"] = no_sync(step, place.kind)
    optimizer.finish()
    return found


def memory(place: Place) -> Result:
    """Bytes at most of a forward pass and of a step, with the weights whole in one process and sharded over two."""
    model = opt(place.size, place.device, place.half)
    layers = model.model.decoder.layers  # type: ignore[union-attr]
    everything = _bytes(model)
    blocks = {"layer": _bytes(layers[0]), "rest": everything - sum(map(_bytes, layers))}
    if place.world > 1:
        model = place.sharded(model)
    optimizer = KerZOO(model, defer=True)
    found: Result = {
        "weights": everything,
        "blocks": blocks,
        "weights here": sum(w.segment.local().nbytes for w in optimizer.works),
    }
    sweeper = Sweeper(optimizer.works, "gaussian")
    one, two = Operation(1, 0, (1e-9,)), Operation(2, 0, (1e-9,))
    sweep = functools.partial(sweeper, one, two)
    sweep()
    cases = [(1, 8), *((BATCH, tokens) for tokens in place.lengths)]
    for batch, tokens in cases:
        closure = functools.partial(loss_of, model, place.prompts(batch, tokens))
        step = functools.partial(optimizer.step, closure)
        step()
        clean(place.kind)
        found[f"{batch} x {tokens} tokens"] = {
            "before": torch.cuda.memory_allocated() if place.kind != "cpu" else 0,
            "sweep": peak(place.kind, sweep),
            "step": peak(place.kind, step),
            "forward": peak(place.kind, _forward(model, closure)),
            "step_ms": median(step, place.rounds, place.kind),
        }
    optimizer.finish()
    return found


def _bytes(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())


def _quietly(closure: Callable[[], Tensor], times: int) -> Callable[[], None]:
    @torch.no_grad()
    def program() -> None:
        for _ in range(times):
            closure()

    return program


def _forward(model: nn.Module, closure: Callable[[], Tensor]) -> Callable[[], None]:
    """One forward pass, which FSDP2 leaves with the root's weights gathered: freed, as after inference."""

    def program() -> None:
        _quietly(closure, 1)()
        if hasattr(model, "reshard"):
            model.reshard()

    return program


JOBS: dict[str, Callable[[Place], Result]] = {
    "float32": lambda place: formats(place, torch.float32),
    "float16": lambda place: formats(place, torch.float16),
    "bfloat16": lambda place: formats(place, torch.bfloat16),
    "speed": speed,
    "memory": memory,
}
COMPARED = ("float32", "float16", "bfloat16")


def work(jobs: list[str], folder: Path, kind: str, quick: bool) -> None:
    """Run by each process: the jobs in turn, until one fails, since the others would wait for this one in vain."""
    place = Place(kind, quick)
    limit = timedelta(seconds=30)
    if kind == "cpu":
        dist.init_process_group("gloo", timeout=limit)
    else:
        torch.cuda.set_device(place.device)
        dist.init_process_group("nccl", timeout=limit, device_id=torch.device(place.device))
    found: Result = {}
    for name in jobs:
        start = time.perf_counter()
        try:
            found[name] = JOBS[name](place)
        except Exception:  # told in the file, and by the exit status
            found[name] = {"traceback": traceback.format_exc()}
        found[name]["seconds"] = time.perf_counter() - start
        found[name]["device"] = _device_name(place.device)
        (folder / f"{place.rank}.json").write_text(json.dumps(found))
        if "traceback" in found[name]:
            sys.exit(f"{name} failed")
        gc.collect()
        clean(kind)
    dist.barrier()
    dist.destroy_process_group()


def _device_name(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


# ---- the part of the script ---------------------------------------------------------------------------------------------


def ranks(device: str, quick: bool, keep: Callable[[Result], None], seconds: float = 150) -> Result:
    """Every job with one process and with two, and what they have to do with one another."""
    until = time.monotonic() + seconds
    if device != "cpu":
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        result: Result = {"devices": names, "nccl": ".".join(map(str, torch.cuda.nccl.version()))}
        if len(names) < 2:
            raise RuntimeError(f"two GPUs are needed, and there are {len(names)}")
        result["reach each other"] = torch.cuda.can_device_access_peer(0, 1)
    else:
        result = {"devices": ["cpu"]}
    for world, share in ((1, 0.5), (2, 1.0)):
        found = result[f"processes: {world}"] = {}
        end = time.monotonic() + share * (until - time.monotonic())
        left = list(JOBS)
        while left and time.monotonic() < end - 5:
            done = _launch(world, left, device, quick, end - time.monotonic())
            found |= done
            left = left[left.index(list(done)[-1]) + 1 :]
            keep(result)
        nothing = {"traceback": "no time was left"}
        found |= {name: _of_each([nothing] * world) for name in left}
    result |= _judged(_ended(result["processes: 1"]), _ended(result["processes: 2"]))
    return result


def _launch(world: int, jobs: list[str], device: str, quick: bool, seconds: float) -> Result:
    """The jobs in so many processes: those that ended, and the first that did not, with what was printed last."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nnodes",
            "1",
            "--nproc-per-node",
            str(world),
        ]
        command += ["--master-addr", "127.0.0.1", "--master-port", str(_free_port()), __file__]
        command += ["--jobs", ",".join(jobs), "--folder", name, "--device", device] + ["--quick"] * quick
        local = {"NCCL_NVLS_ENABLE": "0", "NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo"}
        environment = {"OMP_NUM_THREADS": "4", **os.environ, **local}
        with (folder / "printed").open("w+") as printed:
            started = subprocess.Popen(command, stdout=printed, stderr=subprocess.STDOUT, env=environment)
            try:
                started.wait(seconds)
            except subprocess.TimeoutExpired:
                _end(started)
            printed.seek(0)
            tail = printed.read()[-4000:]
        files = [folder / f"{rank}.json" for rank in range(world)]
        found = [json.loads(file.read_text()) if file.exists() else {} for file in files]
        done: Result = {}
        for job in jobs:
            each = [one.get(job, {"traceback": f"ended without a result\n{tail}"}) for one in found]
            done[job] = _of_each(each)
            failed = [rank for rank, one in enumerate(each) if "traceback" in one]
            print(f"  {world} x {job}: {f'failed in {failed}' if failed else 'OK'}", flush=True)
            if failed:
                break
        return done


def _of_each(found: list[Result]) -> Result:
    return found[0] if len(found) == 1 else {f"process {rank}": one for rank, one in enumerate(found)}


def _end(started: subprocess.Popen[bytes]) -> None:
    """The launcher ends its processes when it is told to stop, so it gets time for that."""
    started.terminate()
    try:
        started.wait(15)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _ended(found: Result) -> Result:
    """The jobs that ended in every process."""
    return {
        job: each
        for job, each in found.items()
        if not any("traceback" in one for one in (each, *each.values()) if isinstance(one, dict))
    }


def _judged(one: Result, two: Result) -> Result:
    """Digests beside each other, scaling factors, and memory beyond shards in units of the largest block."""
    judged: Result = {"same digest": {}, "scaling": {}, "memory of shards": {}}
    parts: dict[str, Callable[[], None]] = {
        **{name: functools.partial(_digests, name, one, two, judged) for name in COMPARED},
        "speed": lambda: _scaling(one["speed"], two["speed"], judged["scaling"]),
        "memory": lambda: _shards(one["memory"], two["memory"], judged["memory of shards"]),
    }
    for name, part in parts.items():
        try:
            part()
        except KeyError as missing:  # a job that did not end, whose traceback stands with it
            judged[f"not judged, {name}"] = f"without {missing}"
    bars = [*judged["same digest"].values()]
    bars += [case["holds"] for case in judged["memory of shards"].values()]
    return judged | {"holds": all(bars) and not any(key.startswith("not judged") for key in judged)}


def _digests(name: str, one: Result, two: Result, judged: Result) -> None:
    alone = one[name]
    for mode in two[name]["process 0"]:
        if mode in ("seconds", "device"):
            continue
        runs = [alone["eager" if mode == "sharded" else mode], *(each[mode] for each in two[name].values())]
        moved = all(run["digest"] != run["start"] and run["skipped"] == 0 for run in runs)
        judged["same digest"][f"{name}, {mode}"] = moved and len({run["digest"] for run in runs}) == 1


def _scaling(one: Result, two: Result, judged: Result) -> None:
    """Prompts a second of two processes over those of one; a step takes as long as in the slower process."""
    for case in two["process 0"]:
        kind, _, tokens = case.partition(", ")
        if kind not in ("weak", "strong"):
            continue
        alone = one[f"weak, {tokens}"]["step_ms"]["median"]
        together = max(each[case]["step_ms"]["median"] for each in two.values())
        judged[case] = {
            "steps_a_second": {"one": 1e3 / alone, "two": 1e3 / together},
            "factor": (2 if kind == "weak" else 1) * alone / together,
        }


def _shards(one: Result, two: Result, judged: Result) -> None:
    """What a step needs beyond a forward pass of FSDP2, what a sweep needs, and what is gathered: the peak without the shard and
    without what a forward pass of whole weights needs."""
    for case, alone in one.items():
        if "tokens" not in case:
            continue
        each = list(two.values())
        block = max(each[0]["blocks"].values())
        beyond_forward = max(m[case]["step"]["allocated"] - m[case]["forward"]["allocated"] for m in each)
        sweep = max(m[case]["sweep"]["allocated"] - m[case]["before"] for m in each)
        inference = alone["forward"]["allocated"] - alone["before"]
        gathered = max(m[case]["step"]["allocated"] - m[case]["before"] - inference for m in each)
        judged[case] = {
            "largest block": block,
            "shard": max(m["weights here"] for m in each),
            "peak of a step": max(m[case]["step"]["allocated"] for m in each),
            "activations of inference": inference,
            "step beyond a forward pass": beyond_forward,
            "sweep": sweep,
            "gathered, in blocks": gathered / block,
            "step_ms": {
                "one": alone["step_ms"]["median"],
                "two": max(m[case]["step_ms"]["median"] for m in each),
            },
            "holds": beyond_forward <= block and sweep <= block,
        }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    work(given.jobs.split(","), given.folder, given.device, given.quick)
