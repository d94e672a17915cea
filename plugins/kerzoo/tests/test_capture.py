"""Captured losses. What a graph does needs CUDA; without it a loss is evaluated as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from planish_kerzoo.capture import CapturedLoss, Repeated
from planish_kerzoo.optimizer import KerZOO

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a CUDA device")


def net(device: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 4)).to(device)


def train(device: str, bound: bool) -> list[Tensor]:
    model = net(device)

    def loss(x: Tensor, *, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(x), y)

    captured = CapturedLoss(model, loss)
    optimizer = KerZOO(model, lr=1e-2, seed=3, defer=True)
    for step in range(6):
        x = torch.linspace(-1, step, 8 * (5 + step % 2), device=device).view(-1, 8)
        y = torch.arange(len(x), device=device) % 4
        optimizer.step(captured.bind(x, y=y) if bound else lambda x=x, y=y: loss(x, y=y))
    optimizer.finish()
    assert captured.refused is None
    return [p.detach().clone() for p in model.parameters()]


def test_without_cuda_a_bound_loss_is_the_loss() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain, bound = train("cpu", False), train("cpu", True)
    assert all(torch.equal(a, b) for a, b in zip(plain, bound, strict=True))


def test_closures_of_one_shape_keep_their_own_batches() -> None:
    model = net("cpu").eval()
    captured = CapturedLoss(model, lambda x: model(x).mean())
    one, two = torch.ones(3, 8), torch.zeros(3, 8)
    first, second = captured.bind(one), captured.bind(two)
    second()
    assert torch.equal(first(), model(one).mean().detach())


def test_a_repeated_program_runs_once_a_call() -> None:
    total = torch.zeros(1)
    program = Repeated(lambda: total.add_(1), total.device)
    for _ in range(5):
        program()
    assert float(total) == 5


@needs_cuda
@pytest.mark.gpu
def test_a_captured_run_follows_an_eager_one() -> None:
    for a, b in zip(train("cuda", False), train("cuda", True), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    total = torch.zeros(1, device="cuda")
    program = Repeated(lambda: total.add_(1), total.device)
    for _ in range(5):
        program()
    assert float(total) == 5


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (lambda model, x: model.train()(x).mean(), "random numbers"),
        (lambda model, x: model.eval()(x).mean() * float(x[0, 0]), "its capture failed"),
        (lambda model, x: x[x > 0].mean(), "its capture failed"),
    ],
)
def test_what_cannot_be_captured_is_evaluated_as_it_is(
    loss: Callable[[nn.Module, Tensor], Tensor], reason: str
) -> None:
    model, x = net("cuda"), torch.ones(3, 8, device="cuda")
    captured = CapturedLoss(model, lambda x: loss(model, x))
    with pytest.warns(UserWarning, match="without a CUDA graph") as caught:
        assert all(bool(captured.bind(x)().isfinite()) for _ in range(3))
    assert len(caught) == 1
    assert reason in str(captured.refused)


@needs_cuda
@pytest.mark.gpu
def test_a_graph_is_made_anew_when_parameters_get_other_memory() -> None:
    model, x = net("cuda").eval(), torch.ones(3, 8, device="cuda")
    captured = CapturedLoss(model, lambda x: model(x).mean())
    captured.bind(x)()
    model.cpu().cuda()
    with torch.no_grad():
        model[0].weight.mul_(2)
    torch.testing.assert_close(captured.bind(x)(), model(x).mean().detach())
