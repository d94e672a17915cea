"""Run with TRITON_INTERPRET=1 by `test_kernels`: every kernel beside its reference, the sweep in every number format and mode."""

from __future__ import annotations

import torch
from torch import nn

from planish_kerzoo import fused, kernels, noise
from planish_kerzoo.layout import lay_out
from planish_kerzoo.stacked import Plain
from planish_kerzoo.sweep import Operation, Sweeper, Work, make_tables, reference

SHAPES = {"b": (37, 11), "a": (4096,), "c": (5,)}
D = torch.tensor([0.37])
UPDATE = Operation(0xFEDCBA9876543210, 3, (0.01,), (-0.02,), D, keeps=True)
PROBE = Operation(12345, 0, (0.005,))
SKIPPED = Operation(77, 3, (0.01,), (-0.02,), D * torch.nan, keeps=True)


def works(dtype: torch.dtype, kept: torch.dtype | None, shift: int) -> list[Work]:
    """With ``shift``, a segment starts in the middle of its parameter, as a shard does, and its memory is not aligned."""
    generator = torch.Generator().manual_seed(0)
    named = []
    for name, shape in SHAPES.items():
        values = torch.randn(*shape, generator=generator).to(dtype)
        backing = torch.empty(values.numel() + shift, dtype=dtype)[shift:].view(shape)
        named.append((name, nn.Parameter(backing.copy_(values)), 0))
    segments = lay_out(named)
    if shift:
        segments = [
            type(s)(s.name, s.parameter, s.start + 1000 * shift, s.whole, 0, s.index) for s in segments
        ]
    return [Work(s, 0, s.local().to(kept, copy=True) if kept else None, True) for s in segments]


def results(case: list[Work], by_kernel: bool, u: str) -> list[torch.Tensor]:
    sweeper = Sweeper(case, u, True)  # type: ignore[arg-type]
    for first, second in ((UPDATE, PROBE), (PROBE, None), (SKIPPED, None)):
        for table in make_tables(case) if by_kernel else ():
            table.launch(first, second, u, True)  # type: ignore[arg-type]
        for work in () if by_kernel else case:
            reference(work, first, second, sweeper.directions)
    copies = [w.copy for w in case if w.copy is not None]
    if copies and case[0].segment.parameter.dtype == torch.bfloat16:
        return copies  # the interpreter cuts float32 to bfloat16 instead of rounding it, so only a GPU can show the rest
    return [w.segment.local() for w in case] + copies


def directions() -> None:
    keys = torch.tensor([99, noise.as_int64(0xFEDCBA9876543210)])
    for first in (0, 7, (1 << 20) + 3):
        for u in ("gaussian", "rademacher"):
            made = kernels.directions(keys, first, 2, u)  # type: ignore[arg-type]
            assert torch.equal(made, noise.directions(keys, first, 2, u)), u  # type: ignore[arg-type]


def parts_of_a_stacked_model() -> None:
    """Widths that are no powers of 2, weights that are strided by run, fewer tokens than a block."""
    runs, prompts, length, heads, groups, width = 2, 3, 10, 4, 2, 6
    torch.manual_seed(0)
    x = torch.randn(runs, prompts * length, heads * width)
    weight = torch.randn(runs, 100)[:, 7 : 7 + heads * width].view(runs, 1, -1)
    torch.testing.assert_close(fused.norm(x, weight, 1e-5), Plain.norm(x, weight, 1e-5))
    key, value = torch.randn(2, runs, prompts * length, groups * width)
    angle = torch.randn(length, width // 2).repeat(1, 2)
    arguments = (x, key, value, (angle.cos(), angle.sin()), length, heads, groups)
    torch.testing.assert_close(fused.attention(*arguments), Plain.attention(*arguments), rtol=1e-5, atol=1e-5)
    gate, up = torch.randn(2, runs, 3, 700)
    torch.testing.assert_close(fused.gated(gate.clone(), up), Plain.gated(gate, up))


def main() -> None:
    directions()
    parts_of_a_stacked_model()
    full, half, brain = torch.float32, torch.float16, torch.bfloat16
    cases = [
        (full, None, "gaussian", 0),
        (full, full, "rademacher", 0),
        (half, None, "rademacher", 0),
        (half, full, "gaussian", 0),
        (brain, None, "gaussian", 0),
        (brain, brain, "gaussian", 0),
        (full, None, "gaussian", 3),
        (half, full, "rademacher", 3),
        (brain, None, "gaussian", 3),
    ]
    for dtype, kept, u, shift in cases:
        pair = [results(works(dtype, kept, shift), by_kernel, u) for by_kernel in (False, True)]
        for one, other in zip(*pair, strict=True):
            assert torch.equal(one, other), (
                f"{dtype}, copy {kept}, {u}, shift {shift}: kernel and reference differ"
            )
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
