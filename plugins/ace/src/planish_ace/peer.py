"""The peer of the benchmark: the public Wanda loop, re-stated.

Block by block, one sample at a time: hooks collect the squared norm of every linear layer's input, each layer sorts all of its
scores and zeroes the first ones by index, and every sample runs through the block again. Same scores as metric ``wanda``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from planish_sdk.blocks import find_blocks


class _Caught(Exception):
    pass


def wanda_loop(model: nn.Module, windows: Tensor, sparsity: float) -> None:
    """Prune the linear layers of all decoder blocks in place; windows [N, S] of token ids."""
    _, blocks = find_blocks(model)
    with torch.no_grad():
        samples = [_first_block_input(model, blocks[0], window[None]) for window in windows]
        for block in blocks:
            layers = [module for module in block.modules() if isinstance(module, nn.Linear)]
            norms = {layer: torch.zeros(layer.in_features) for layer in layers}
            handles = [layer.register_forward_hook(_adder(norms[layer])) for layer in layers]
            for hidden, kwargs in samples:
                block(hidden, **kwargs)
            for handle in handles:
                handle.remove()
            for layer in layers:
                score = layer.weight.abs() * norms[layer].div(len(samples)).sqrt()
                order = torch.sort(score, dim=-1, stable=True)[1]
                mask = torch.zeros_like(score, dtype=torch.bool)
                mask.scatter_(1, order[:, : int(score.shape[1] * sparsity)], True)
                layer.weight[mask] = 0
            samples = [(_tensor(block(hidden, **kwargs)), kwargs) for hidden, kwargs in samples]


def _first_block_input(model: nn.Module, block: nn.Module, ids: Tensor) -> tuple[Tensor, dict[str, Any]]:
    caught: list[tuple[Tensor, dict[str, Any]]] = []

    def catch(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        caught.append((args[0] if args else kwargs.pop("hidden_states"), kwargs))
        raise _Caught

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        model(input_ids=ids, use_cache=False)
    except _Caught:
        pass
    finally:
        handle.remove()
    return caught[0]


def _adder(total: Tensor) -> Any:
    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        total.add_(args[0].reshape(-1, args[0].shape[-1]).float().T.norm(p=2, dim=1) ** 2)

    return add


def _tensor(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]
