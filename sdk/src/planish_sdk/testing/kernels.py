"""Kernels beside their references: values and gradients over generated arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import torch
    from hypothesis.strategies import SearchStrategy
    from torch import Tensor

Kernel: TypeAlias = "tuple[Callable[..., Any], Callable[..., Any], SearchStrategy[tuple[Any, ...]]]"


def tensors(
    *shape: int | SearchStrategy[int],
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    scale: float = 1.0,
) -> SearchStrategy[Tensor]:
    """Standard normal tensors times ``scale``; a size may be a strategy. A failing example shrinks to a small shape."""
    import torch
    from hypothesis import strategies

    sizes = [strategies.just(size) if isinstance(size, int) else size for size in shape]

    def make(drawn: tuple[tuple[int, ...], int]) -> Tensor:
        dimensions, seed = drawn
        values = torch.randn(dimensions, generator=torch.Generator().manual_seed(seed))
        return (scale * values).to(device=device, dtype=dtype or torch.float32)

    seeds = strategies.integers(0, 2**31 - 1)
    return strategies.tuples(strategies.tuples(*sizes), seeds).map(make)


def compare(kernel: Kernel, examples: int) -> None:
    """Raise AssertionError at the smallest arguments found for which kernel and reference differ."""
    from hypothesis import HealthCheck, given, settings

    function, reference, arguments = kernel

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(arguments)
    def agree(drawn: tuple[Any, ...]) -> None:
        _agree(function, reference, drawn)

    agree()


def _agree(function: Callable[..., Any], reference: Callable[..., Any], arguments: Sequence[Any]) -> None:
    """Values with torch's tolerances for their dtype, then gradients for a fixed random cotangent."""
    import torch

    ours, wanted = _leaves(arguments), _leaves(arguments)
    got, expected = _tuple(function(*ours)), _tuple(reference(*wanted))
    shapes = [list(a.shape) if isinstance(a, torch.Tensor) else a for a in arguments]
    torch.testing.assert_close(got, expected, msg=lambda text: f"values differ for {shapes}: {text}")
    if not any(output.requires_grad for output in expected):
        return
    generator = torch.Generator().manual_seed(0)
    cotangents = [torch.randn(o.shape, generator=generator).to(o) for o in expected]
    _backward(got, cotangents)
    _backward(expected, cotangents)
    for position, (mine, other) in enumerate(zip(ours, wanted, strict=True)):
        if isinstance(other, torch.Tensor) and other.grad is not None:
            assert mine.grad is not None, f"argument {position} gets no gradient for {shapes}"
            torch.testing.assert_close(
                mine.grad,
                other.grad,
                msg=lambda text, n=position: f"gradients of argument {n} differ for {shapes}: {text}",  # type: ignore[misc]
            )


def _leaves(arguments: Sequence[Any]) -> list[Any]:
    """Own copies; floating tensors become leaves that gather gradients."""
    import torch

    return [
        a.detach().clone().requires_grad_(a.is_floating_point()) if isinstance(a, torch.Tensor) else a
        for a in arguments
    ]


def _tuple(outputs: Any) -> tuple[Tensor, ...]:
    return tuple(outputs) if isinstance(outputs, tuple | list) else (outputs,)


def _backward(outputs: Sequence[Tensor], cotangents: Sequence[Tensor]) -> None:
    import torch

    pairs = [(o, c) for o, c in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if pairs:
        torch.autograd.backward([o for o, _ in pairs], [c for _, c in pairs])
