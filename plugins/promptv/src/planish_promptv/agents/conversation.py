"""Who says what to whom. Roles share no memory: each question is a conversation of its own, of two messages.

`Alone` is the ablation: one conversation that grows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from planish_promptv.agents.budget import Spending
from planish_promptv.agents.extract import SCHEMA, FormatError
from planish_promptv.agents.prompts import PromptPack
from planish_promptv.agents.trace import Trace
from planish_promptv.config import GenerationConfig
from planish_promptv.models.protocol import ContextOverflow, Message, Provider, Reply, Request

T = TypeVar("T")
DRAFTS = ("coder", "bencher")
REVIEWS = ("teacher", "prosecutor")
SHORTENED = 1000
"""Characters of simulator text in the one repetition of a prompt that was too long."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a run a question is asked."""

    task: str
    sample: int
    attempt: int
    round: int


@dataclass(slots=True)
class Answer:
    """A reply and the request it belongs to, not yet in the trace."""

    request: Request
    reply: Reply


@dataclass(slots=True)
class Speaker:
    """Asks models for one sample.

    Attributes:
        seed: of the run; every request has its own, derived from it and from where it is asked.
        history: messages so far; only the growing conversation keeps any.
    """

    provider: Provider
    pack: PromptPack
    config: GenerationConfig
    spending: Spending
    trace: Trace
    seed: int
    history: list[Message] = field(default_factory=list)

    async def ask(
        self,
        role: str,
        place: Place,
        values: Mapping[str, str],
        read: Callable[[Reply], T],
        simulation: Callable[[int], str] | None = None,
    ) -> tuple[T | None, list[Answer]]:
        """Ask once, and once more naming the defect where the reply cannot be read.

        Args:
            values: fields of the templates.
            read: what makes a result of the reply; raises `FormatError`.
            simulation: renders the simulator's text within so many characters.

        Returns:
            The result, or None when both replies could not be read; and the answers, to be noted by `note`.
        """
        answers: list[Answer] = []
        defect = ""
        limit = self.config.simulator_text
        for ask in (0, 1):
            while True:
                filled = {**values, "defect": defect}
                if simulation is not None:
                    filled["simulation"] = simulation(limit)
                messages = self._messages(role, filled)
                try:
                    answer = await self._send(role, place, ask, messages)
                    break
                except ContextOverflow:
                    if simulation is None or limit <= SHORTENED:
                        raise
                    limit = SHORTENED
            answers.append(answer)
            self._remember(messages, answer.reply)
            try:
                return read(answer.reply), answers
            except FormatError as error:
                defect = (
                    f"\n\nYour previous reply could not be used: {error}. Answer again in the form asked for."
                )
        return None, answers

    def note(self, answers: list[Answer]) -> None:
        """Write answers to the trace, in the order in which the loop uses them."""
        for answer in answers:
            self.trace.add(
                "llm_call",
                request=answer.request.model_dump(mode="json"),
                reply=answer.reply.model_dump(mode="json"),
            )

    async def _send(self, role: str, place: Place, ask: int, messages: tuple[Message, ...]) -> Answer:
        config = self.config
        model = config.model_of(role)
        wants_json = config.json_replies and role in REVIEWS
        request = Request(
            agent=role,
            model=model,
            messages=messages,
            temperature=config.draft_temperature if role in DRAFTS else config.repair_temperature,
            top_p=config.top_p,
            max_tokens=config.max_tokens,
            seed=derived(self.seed, place.task, place.sample, place.attempt, place.round, role, ask),
            schema_name="advice" if wants_json else "",
            json_schema=SCHEMA if wants_json else None,
            task=place.task,
            sample=place.sample,
            attempt=place.attempt,
            round=place.round,
            ask=ask,
        )
        reply = await self.spending.call(self.provider, request)
        return Answer(request, reply)

    def _messages(self, role: str, values: Mapping[str, str]) -> tuple[Message, ...]:
        template = "research" if role == "teacher" and self.config.mode == "coopetitive" else role
        system, user = self.pack.render(template, "user", values)
        return Message(role="system", content=system), Message(role="user", content=user)

    def _remember(self, messages: tuple[Message, ...], reply: Reply) -> None:
        """A fresh conversation is forgotten."""


class Alone(Speaker):
    """One agent that writes, checks and corrects in the same conversation."""

    def _messages(self, role: str, values: Mapping[str, str]) -> tuple[Message, ...]:
        system, user = self.pack.render("single", role, values)
        start = self.history or [Message(role="system", content=system)]
        return *start, Message(role="user", content=user)

    def _remember(self, messages: tuple[Message, ...], reply: Reply) -> None:
        self.history = [*messages, Message(role="assistant", content=reply.text)]


def derived(seed: int, *parts: object) -> int:
    """A seed below 2**31 for one request."""
    digest = hashlib.sha256(repr((seed, *parts)).encode()).digest()
    return int.from_bytes(digest[:4], "little") >> 1
