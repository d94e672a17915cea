"""Run by `test_distributed` in each of two processes: arguments are rank, rendezvous file and prefix of the result files."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

import planish
from planish_kerzoo import CapturedLoss, KerZOO
from planish_kerzoo.log import fingerprint, share_log


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 33), nn.Tanh(), nn.Linear(33, 7))


def loss(model: nn.Module, part: Tensor) -> Tensor:
    return model(part).square().mean()


def train(model: nn.Module, parts: list[Tensor], **options: object) -> KerZOO:
    optimizer = KerZOO(model, lr=1e-2, n=2, seed=4, defer=True, **options)
    for _ in range(6):
        optimizer.step(lambda: torch.stack([loss(model, part) for part in parts]))
    optimizer.finish()
    return optimizer


def batch() -> list[Tensor]:
    """Two halves of one batch."""
    return list(torch.linspace(-1, 1, 90).view(10, 9).chunk(2))


def sharded() -> nn.Module:
    """The root keeps parameters of its own, which FSDP2 would leave gathered after a forward pass."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model, mesh = net(), init_device_mesh("cpu", (2,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def stage(folder: Path) -> nn.Module:
    """The stage on two microbatches, each process in a folder of its own. A log that is there already is gone on with."""
    x = torch.linspace(-1, 1, 360).view(40, 9)
    values = {"train_x": x, "train_y": (x[:, 0] > 0).long(), "test_x": x, "test_y": (x[:, 0] > 0).long()}
    task = planish.Classification(data=planish.Tensors(values=values), input="input")
    options = {"steps": 8, "batch": 6, "microbatches": 2, "lr": 1e-2, "unit": 4}
    result = planish.Pipeline(task=task).then("kerzoo", **options).run(net(), out=folder, measure="none")
    return result.load(module=net()).module  # type: ignore[no-any-return]


def killed_at_other_steps(rank: int, folder: Path) -> bool:
    """Logs that ended at different steps: every process goes on with that of the first one."""
    log = folder / f"{rank}.log"
    log.write_bytes(b"first" if rank == 0 else b"a longer one")
    share_log(log)
    return log.read_bytes() == b"first"


def main(rank: int, rendezvous: str, out: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    for mode, model in (("data-parallel", net()), ("sharded", sharded())):
        # Only the first process writes a log, also of shards, whose fingerprint takes both.
        optimizer = train(model, [batch()[rank]], log=f"{out}-{mode}-log" if rank == 0 else None)
        captured = CapturedLoss(model, functools.partial(loss, model))
        captured.bind(batch()[rank])()
        assert (captured.refused == "its parameters are sharded") == (mode == "sharded")
        parameters = [work.segment.parameter for work in optimizer.works]
        values = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parameters]
        if rank == 0:
            save_file({str(i): v.detach().contiguous() for i, v in enumerate(values)}, f"{out}-{mode}")
        held = sum(len(work.segment.local()) for work in optimizer.works)
        digest = fingerprint([work.segment for work in optimizer.works])
        print(mode, held, sum(v.numel() for v in values), digest)
    trained = stage(Path(f"{out}-{rank}"))
    if rank == 0:
        save_file(dict(trained.state_dict()), f"{out}-stage")
    print("logs", killed_at_other_steps(rank, Path(f"{out}-{rank}")))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
