"""What a language model is asked, what it answers, and what a provider of models must offer."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, Protocol

from pydantic import Field

from planish import digest
from planish.errors import PlanishError
from planish_promptv.types import Record

Role = Literal["coder", "bencher", "teacher", "prosecutor", "learner_code", "learner_bench"]
ROLES: tuple[Role, ...] = ("coder", "bencher", "teacher", "prosecutor", "learner_code", "learner_bench")


class ModelError(PlanishError):
    """A model could not answer. The text says what was asked of whom and what to do."""


class EndpointUnreachable(ModelError):
    """No usable answer after every try; repeating the command later continues."""


class KeyRefused(ModelError):
    """The endpoint does not accept the key, or wants one."""


class RequestRefused(ModelError):
    """The endpoint will never accept this request: unknown model, wrong path, unsupported parameter."""


class ContextOverflow(ModelError):
    """The prompt does not fit into the model's context."""


class ReplayMiss(ModelError):
    """A replay needs a call that was not recorded."""


class Message(Record):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Request(Record):
    """One question to one model. ``sample``, ``attempt``, ``round`` and ``ask`` keep equal questions apart.

    Attributes:
        agent: who asks.
        model: name at the endpoint.
        schema_name, json_schema: shape of a JSON reply, where one is wanted and the endpoint can be held to it.
        ask: 0 for the question, 1 for the one repetition that names a defect of the first reply.
    """

    agent: str
    model: str
    messages: tuple[Message, ...]
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    schema_name: str = ""
    json_schema: dict[str, Any] | None = None
    task: str = ""
    sample: int = 0
    attempt: int = 0
    round: int = 0
    ask: int = 0

    def key(self, provider: str) -> str:
        """sha256 over the provider and everything above: equal keys may share one paid reply."""
        return digest.of_json([provider, self.model_dump(mode="json")])

    @property
    def length(self) -> int:
        """Estimated tokens of the prompt."""
        return sum(estimate_tokens(message.content) + 4 for message in self.messages)


class Usage(Record):
    """Tokens of one call. ``estimated`` where the server did not count them."""

    prompt: int = Field(0, ge=0)
    completion: int = Field(0, ge=0)
    estimated: bool = False

    @property
    def total(self) -> int:
        return self.prompt + self.completion


class Reply(Record):
    """What a model answered, reasoning removed.

    Attributes:
        finish_reason: ``stop``, ``length``, ``content_filter`` or what else the server says.
        latency_s: seconds from the first try to the answer; tries: requests that were sent for it.
    """

    text: str
    finish_reason: str = "stop"
    usage: Usage = Usage()
    model: str = ""
    latency_s: float = 0.0
    tries: int = 1


class Capabilities(Record):
    """What an endpoint was found to accept so far: None where it has not been tried."""

    json_mode: Literal["json_schema", "json_object", "none"] | None = None
    dropped: tuple[str, ...] = ()


class Price(Record):
    """US dollars for a million tokens."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)

    def of(self, usage: Usage) -> float:
        """Dollars for one call."""
        return (usage.prompt * self.prompt + usage.completion * self.completion) / 1e6


class Provider(Protocol):
    """A source of model replies.

    Attributes:
        address: what tells providers apart in keys and reports (a base URL, a folder); never holds a key.
    """

    address: str

    async def complete(self, request: Request) -> Reply:
        """Answer one request.

        Raises:
            ModelError: no answer can be had; the subclass says why.
        """
        ...

    def capabilities(self, model: str) -> Capabilities:
        """What has been learned about ``model``."""
        ...

    def price(self, model: str) -> Price | None:
        """Price of ``model``, or None where it is unknown."""
        ...

    async def aclose(self) -> None:
        """Release connections and memory."""
        ...


def estimate_tokens(text: str) -> int:
    """About four characters a token: what is used where the server counts nothing."""
    return math.ceil(len(text) / 4)


_THOUGHT_TAG = re.compile(r"<(/?)(?:think|thinking|reasoning)>", re.IGNORECASE)


def without_reasoning(text: str) -> str:
    """``text`` without think tags: pairs, a closing tag whose opening was part of the prompt, and a cut thought."""
    kept: list[str] = []
    start: int | None = 0  # of what is no thought; None inside one
    for tag in _THOUGHT_TAG.finditer(text):
        if tag[1]:
            if start is not None:
                kept.clear()
            start = tag.end()
        elif start is not None:
            kept.append(text[start : tag.start()])
            start = None
    return "".join([*kept, "" if start is None else text[start:]]).strip()
