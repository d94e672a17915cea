"""One suite a method of the sample plugin. Not collected by itself: `test_testing.py` runs it where the plugin is installed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from hypothesis import strategies
from planish_sample import pruners
from torch import Tensor

from planish_sdk.testing import MethodSuite, tensors


def suite(method: str, **settings: Any) -> type[MethodSuite]:
    declared = {"method": method, "options": {"sparsity": 0.5}, "expected": 0.5, **settings}
    return type(f"Test_{method}", (MethodSuite,), declared)


for _record in pruners():
    globals()[f"Test_{_record.name}"] = suite(_record.name)

Test_families = suite("sound", models=("gpt2", "mixtral", "falcon"))


class TestReasons(MethodSuite):
    method = "noop"
    expected_failures: ClassVar = {
        "test_something_changed": "does nothing on purpose",
        "test_reload_in_new_process[llama]": "passes all the same",
    }


class Square(torch.autograd.Function):
    """x * x, with half of its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * x


def plain_square(x: Tensor) -> Tensor:
    return x * x


def short_square(x: Tensor) -> Tensor:
    """Wrong in the last column of wide inputs."""
    out = x * x
    return torch.cat([out[:, :4], torch.zeros_like(out[:, 4:])], dim=1) if x.shape[1] > 4 else out


_shapes = strategies.tuples(tensors(strategies.integers(1, 3), strategies.integers(1, 9)))
Test_kernel = suite("sound", kernels=[(plain_square, torch.square, _shapes)])
Test_values = suite("sound", kernels=[(short_square, plain_square, _shapes)])
Test_gradients = suite("sound", kernels=[(Square.apply, plain_square, _shapes)])
