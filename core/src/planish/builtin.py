"""What core itself offers, through the same hooks as any plugin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planish.hooks import hookimpl
from planish.method import Builder, Evaluator, Requirement

if TYPE_CHECKING:
    from planish.source import Source

_TORCH = Requirement("torch", "pip install torch")
_TRANSFORMERS = Requirement("transformers", "pip install transformers")


@hookimpl
def builders() -> list[Builder]:
    return [
        Builder(
            name="transformers",
            kind="torch",
            target="planish.builders.transformers:TransformersBuilder",
            summary="models of the transformers library, rebuilt from their config",
            requires=(_TORCH, _TRANSFORMERS),
        ),
        Builder(
            name="module",
            kind="torch",
            target="planish.builders.module:ModuleBuilder",
            summary="any torch module given in memory; only its weights are kept",
            requires=(_TORCH,),
        ),
    ]


@hookimpl
def evaluators() -> list[Evaluator]:
    return [
        Evaluator(
            name="perplexity",
            target="planish.evaluators:perplexity",
            tasks=("language-modelling",),
            summary="exp of the mean loss a token over non-overlapping windows, and bits per byte",
        ),
        Evaluator(
            name="accuracy",
            target="planish.evaluators:accuracy",
            tasks=("classification", "node-classification", "skeleton-action"),
            summary="share of right answers, with its sample size",
        ),
    ]


@hookimpl(trylast=True)
def open_artifact(uri: str) -> Source | None:
    from planish.source import open_folder_or_hub

    return open_folder_or_hub(uri)
