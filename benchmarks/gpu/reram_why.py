"""Why stuck cells ruin one network and not another: experiments with the constant that one-sided faults add.

    PYTHONPATH=core/src:sdk/src:plugins/reram/src:plugins/reram-protect/src \
        python3 benchmarks/gpu/reram_why.py --data ../shared/data --out FILE [--only digits] [--quick] [--device cpu]

With offset mapping, faults of one kind add nearly the same constant to all weights of a matrix, so that all its outputs move
by that constant times the sum of the inputs. Three things can be done about it without a cell: inputs whose sum is zero, a
mean that is subtracted from the outputs, and weights from which the constant is taken. Digits networks are trained with each
of them, encoders with and without a mean in their norms, with other readouts, sizes and embeddings. For every matrix of an
encoder it is measured how far its inputs are from a sum of zero, and how much of the output's error is one constant.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from glue_chips import (
    MARCH,
    MORE_RATES,
    RATES,
    SWAPPED,
    Bench,
    Save,
    blocks,
    measures,
    one_by_one,
    options,
    with_large_rows,
)
from glue_data import TASKS, Split, Vocabulary, split
from glue_encoder import Encoder, Recipe, fitted, score
from torch import Tensor, nn

from planish_reram.chip import Physics, compose, program
from planish_reram.mapping import mapped_layers, matrix
from planish_reram.quantise import quantise
from planish_reram.slicing import Layout
from planish_reram_protect.benchmark import digits

ENCODERS = {
    "encoder": Recipe(),
    "encoder, norms without a mean": Recipe(norm="rms"),
    "encoder, norms without a mean, uniform start": Recipe(norm="rms", start="uniform", epochs=3),
    "encoder, mean readout": Recipe(readout="mean"),
    "encoder, random embeddings": Recipe(embeddings="random", epochs=6),
    "encoder, uniform start": Recipe(start="uniform"),
    "encoder, width 256": Recipe(width=256, lr=5e-4),
    "encoder, 6 layers": Recipe(depth=6, lr=5e-4),
    "encoder, 12 layers": Recipe(depth=12, lr=5e-4),
    "encoder, large rows": Recipe(),
}
Weights = Mapping[str, Tensor]


class Centred(nn.Module):
    """Subtracts a vector's mean."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=-1, keepdim=True)


def digits_net(kind: str) -> nn.Sequential:
    """64-256-128-10: plain, with centred inputs of every matrix, or with centred outputs of the hidden ones."""
    sizes, parts = (64, 256, 128, 10), []
    for i in range(3):
        if kind == "inputs centred":
            parts.append(Centred())
        parts.append(nn.Linear(sizes[i], sizes[i + 1]))
        if i < 2:
            parts += [Centred(), nn.ReLU()] if kind == "outputs centred" else [nn.ReLU()]
    return nn.Sequential(*parts)


def on_digits(quick: bool, save: Callable[[str, Any], None]) -> None:
    """The three networks, and the plain one with its error split."""
    chips, epochs = (2, 3) if quick else (10, 40)
    x, y, test_x, test_y = digits().data.read("train_x", "train_y", "test_x", "test_y")
    for kind in ("plain", "inputs centred", "outputs centred"):
        torch.manual_seed(0)
        net = digits_net(kind)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        for _ in range(epochs):
            for part in torch.randperm(len(y)).split(64):
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(x[part]), y[part]).backward()
                optimizer.step()
        net.eval()

        def accuracy(weights: Weights, net: nn.Module = net) -> float:
            with torch.inference_mode():
                logits = torch.func.functional_call(net, dict(weights), (test_x,))
            return 100 * float((logits.argmax(1) == test_y).double().mean())

        save(kind, {"float": accuracy({}), **with_error_split(mapped_layers(net), accuracy, chips)})


def with_error_split(
    layers: Mapping[str, nn.Module], accuracy: Callable[[Weights], float], chips: int
) -> dict[str, Any]:
    """Accuracy at the march-test rates: with the whole error of the weights, with its mean alone, and without its mean."""
    quantised = {name: quantise(matrix(layer)) for name, layer in layers.items()}
    ideal = {f"{name}.weight": q.dequantised() for name, q in quantised.items()}
    found: dict[str, Any] = {"fault-free": accuracy(ideal)}
    for mapping in ("offset", "differential"):
        physics = Physics(Layout(mapping=mapping), RATES[MARCH])  # type: ignore[arg-type]
        variants: dict[str, dict[str, Tensor]] = defaultdict(dict)
        shares = []
        for name, q in quantised.items():
            faulty, clean = compose(program(q, physics, range(chips), name), q, physics), q.dequantised()
            error = faulty - clean
            constant = error.mean((1, 2), keepdim=True)
            shares.append(float(constant.square().sum() * clean.numel() / error.square().sum()))
            key = f"{name}.weight"
            variants["whole error"][key] = faulty
            variants["the constant alone"][key] = (clean + constant).expand_as(faulty)
            variants["without the constant"][key] = faulty - constant
        found[f"{mapping}: share of the weights' squared error in one constant"] = statistics.mean(shares)
        for name, weights in variants.items():
            values = [accuracy({n: w[chip] for n, w in weights.items()}) for chip in range(chips)]
            found[f"{mapping}, {name}"] = {
                "mean": statistics.mean(values), "std": statistics.stdev(values), "worst": min(values),
            }  # fmt: skip
    return found


def on_encoder(
    recipe: Recipe,
    folder: Path,
    device: str,
    quick: bool,
    save: Callable[[str, Any], None],
    large_rows: bool = False,
) -> None:
    """One encoder on SST-2: accuracies, and what its matrices' inputs and errors look like."""
    task, chips = TASKS[0], 2 if quick else 10
    train, test = split(folder, task, 100 if quick else None)
    if quick:
        recipe = dataclasses.replace(recipe, epochs=1, width=32, depth=2)
    vocabulary = Vocabulary(train, test)
    training, data = (Split.of(task, rows, vocabulary, device) for rows in (train, test))
    model = fitted(task, vocabulary, training, recipe)
    if large_rows:
        model = with_large_rows(model)
    save("float", score(model, task, data))
    bench = Bench(model, task, data, chips)
    rates = {MARCH: RATES[MARCH], SWAPPED: MORE_RATES[SWAPPED], "5 % / 5 %": MORE_RATES["5 % / 5 %"]}
    save("fault-free", bench()["mean"])
    for mapping in ("offset", "differential"):
        save(mapping, bench.table({"": {}}, rates, mapping=mapping)[""])
    for mapping in ("offset", "differential"):
        save(f"measures, {mapping}", measures(bench, RATES[MARCH], mapping))
    for mapping in ("offset", "differential"):
        save(f"matrices, {mapping}", matrices(model, data, mapping, min(chips, 3)))

    def accuracy(weights: Weights) -> float:
        return score(with_weights(model, weights), task, data)

    save("error split", with_error_split(blocks(model), accuracy, chips))


def with_weights(model: Encoder, weights: Weights) -> nn.Module:
    """The model with other weights, as a module."""

    class Other(nn.Module):
        def forward(self, ids: Tensor, kinds: Tensor) -> Tensor:
            found: Tensor = torch.func.functional_call(model, dict(weights), (ids, kinds))
            return found

    return Other()


@torch.no_grad()
def matrices(model: Encoder, data: Split, mapping: str, chips: int) -> dict[str, dict[str, float]]:
    """For every kind of matrix, at the march-test rates and on the inputs of a model without faults.

    ``coherence`` of the inputs is |sum x| / (sqrt(n) |x|): 1 where all are equal, 0 where they sum to zero. Errors are
    relative to the outputs; ``error, mean removed`` is what a norm that subtracts the mean would leave.
    """
    rows = data.lengths.argsort(stable=True)[len(data.lengths) // 2 :][:256]  # of middling length
    ids, kinds = data.ids[rows], data.kinds[rows]
    present = (ids != 0).flatten()
    physics = Physics(Layout(mapping=mapping), RATES[MARCH])  # type: ignore[arg-type]
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    hooks = []

    def watch(name: str, layer: Any) -> Callable[..., None]:
        def hook(_: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0].flatten(0, 1)[present]
            q = quantise(layer.weight)
            y = x @ q.dequantised().t()
            error = x @ compose(program(q, physics, range(chips), name), q, physics).transpose(1, 2) - y
            common = error.mean(-1, keepdim=True)
            total = error.norm()
            found[name.split(".", 2)[2]].append(
                (
                    float((x.sum(-1).abs() / (x.norm(dim=-1) * x.shape[-1] ** 0.5)).mean()),
                    float((common.square().sum() * error.shape[-1]) / total.square()),
                    float(total / (y.norm() * chips**0.5)),
                    float((error - common).norm() / ((y - y.mean(-1, keepdim=True)).norm() * chips**0.5)),
                )
            )

        return hook

    for name, layer in blocks(model).items():
        hooks.append(layer.register_forward_pre_hook(watch(name, layer)))
    model.eval()
    model(ids, kinds)
    for hook in hooks:
        hook.remove()
    titles = (
        "coherence of the inputs",
        "share of the output error in one constant",
        "error",
        "error, mean removed",
    )
    return {
        kind: dict(zip(titles, (statistics.mean(values) for values in zip(*lists, strict=True)), strict=True))
        for kind, lists in found.items()
    }


def main() -> None:
    arguments = options(["digits", *ENCODERS])

    def work(name: str, save: Save) -> None:
        results: dict[str, Any] = {}

        def keep(part: str, value: Any) -> None:
            results[part] = value
            save(results)

        if name == "digits":
            on_digits(arguments.quick, keep)
        else:
            rows = "large rows" in name
            on_encoder(ENCODERS[name], arguments.data / "glue", arguments.device, arguments.quick, keep, rows)

    one_by_one(arguments, work)


if __name__ == "__main__":
    main()
