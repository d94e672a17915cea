"""What an evaluation may cost, before it starts."""

from __future__ import annotations

from collections.abc import Sequence

from planish_promptv.agents.prompts import describe, load_pack
from planish_promptv.config import EvaluationConfig
from planish_promptv.models.opening import used_roles
from planish_promptv.models.prices import Prices
from planish_promptv.models.protocol import Price, estimate_tokens
from planish_promptv.types import Record, Task

DRAFT_REPLY = 600
"""Tokens assumed for a short file, in the lower figure."""


class Estimate(Record):
    """Calls, tokens and cost between two extremes.

    Attributes:
        calls, prompt_tokens, completion_tokens, cost: (least, most). Least: every draft passes at once, with replies of
            600 tokens. Most: every round of every attempt is needed and every reply is as long as ``max_tokens``
            allows; a repeated question for an unusable reply comes on top.
        cost: US dollars, or None where a price is unknown.
        calls_per_sample: the worst case.
    """

    tasks: int
    samples: int
    calls_per_sample: int
    calls: tuple[int, int]
    prompt_tokens: tuple[int, int]
    completion_tokens: tuple[int, int]
    cost: tuple[float, float] | None

    def lines(self) -> list[str]:
        """The estimate for people."""
        text = [
            f"{self.tasks} tasks x {self.samples} samples; at most {self.calls_per_sample} calls a sample",
            f"calls   {self.calls[0]:,} to {self.calls[1]:,}",
            f"tokens  {self.prompt_tokens[0]:,} to {self.prompt_tokens[1]:,} in, "
            f"{self.completion_tokens[0]:,} to {self.completion_tokens[1]:,} out",
        ]
        if self.cost is None:
            return [*text, "cost    unknown: no price for every model (option prices)"]
        return [*text, f"cost    ${self.cost[0]:,.2f} to ${self.cost[1]:,.2f}"]


def estimate(tasks: Sequence[Task], config: EvaluationConfig) -> Estimate:
    """Estimate from the real prompts of the tasks, at four characters a token."""
    pack = load_pack(config.prompt_pack)
    n = config.samples
    drafts = ["coder"] + (["bencher"] if config.bench_source == "generated" else [])
    draft_tokens = 0
    for task in tasks:
        values = describe(task, config.language_note)
        for role in drafts:
            draft_tokens += sum(estimate_tokens(text) for text in pack.render(role, "user", values))
    per_sample = config.worst_case_calls
    least, most = len(tasks) * n * len(drafts), len(tasks) * n * per_sample
    # A repair prompt holds the description, code, bench and simulator text beside the template.
    largest = (
        draft_tokens // max(1, len(tasks) * len(drafts)) + 2 * config.max_tokens + config.simulator_text // 4
    )
    prompt = (n * draft_tokens, most * largest)
    completion = (least * DRAFT_REPLY, most * config.max_tokens)
    return Estimate(
        tasks=len(tasks),
        samples=n,
        calls_per_sample=per_sample,
        calls=(least, most),
        prompt_tokens=prompt,
        completion_tokens=completion,
        cost=_cost(config, drafts, prompt, completion),
    )


def _cost(
    config: EvaluationConfig, drafts: Sequence[str], prompt: tuple[int, int], completion: tuple[int, int]
) -> tuple[float, float] | None:
    """Least by the cheapest drafting model, most by the dearest model of all."""
    table = Prices.read(config.prices)
    prices = {role: table.of(config.model_of(role)) for role in used_roles(config)}
    known = [price for price in prices.values() if price is not None]
    if len(known) < len(prices):
        return None

    def dollars(price: Price, end: int) -> float:
        return (prompt[end] * price.prompt + completion[end] * price.completion) / 1e6

    return (
        min(dollars(price, 0) for role, price in prices.items() if role in drafts and price is not None),
        max(dollars(price, 1) for price in known),
    )
