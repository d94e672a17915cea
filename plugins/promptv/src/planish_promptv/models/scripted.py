"""Scripts: models made of data. A script answers by role with texts and faults, in order, for tests and rehearsals."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, PrivateAttr, model_validator

from planish.config import validate
from planish.errors import ConfigError
from planish_promptv.models.protocol import (
    Capabilities,
    EndpointUnreachable,
    Price,
    Reply,
    Request,
    estimate_tokens,
)
from planish_promptv.types import Record


class Scripted(Record):
    """One answer. ``text`` and its forms are what a model says; the rest is what may happen on the way.

    ``code`` is put into a fenced block; ``json`` (any value) is written out as JSON.
    """

    text: str | None = Field(None, description="the reply as it is")
    code: str | None = Field(None, description="Verilog, answered in one fenced block")
    value: Any = Field(None, alias="json", description="a value, answered as JSON")
    reasoning: str | None = Field(None, description="text of a separate reasoning field")
    finish_reason: str = Field("stop", description="stop, length, content_filter, …")
    usage: bool = Field(True, description="whether token counts are told")
    status: int = Field(200, ge=100, le=599, description="HTTP status")
    retry_after: float | str | None = Field(None, description="Retry-After header")
    body: str | None = Field(None, description="raw body instead of a chat completion")
    cut: int | None = Field(None, ge=0, description="close the connection after so many bytes of the body")
    delay: float = Field(0.0, ge=0, le=3600, description="seconds before the answer")

    @model_validator(mode="after")
    def _one_content(self) -> Self:
        if sum(part is not None for part in (self.text, self.code, self.value)) > 1:
            raise ValueError("give one of text, code and json")
        return self

    @property
    def content(self) -> str | None:
        """What the model says; None answers with an empty message."""
        if self.code is not None:
            return f"```verilog\n{self.code.strip()}\n```"
        return json.dumps(self.value) if self.value is not None else self.text

    def completion(self, request: dict[str, Any]) -> dict[str, Any]:
        """The body of a chat completion that says it."""
        message = {"role": "assistant", "content": self.content}
        if self.reasoning is not None:
            message["reasoning_content"] = self.reasoning
        body: dict[str, Any] = {
            "id": "scripted",
            "object": "chat.completion",
            "model": request.get("model", ""),
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}],
        }
        if self.usage:
            prompt = sum(estimate_tokens(str(m.get("content", ""))) for m in request.get("messages", ()))
            completion = estimate_tokens(self.content or "")
            counts = {"prompt_tokens": prompt, "completion_tokens": completion}
            body["usage"] = {**counts, "total_tokens": prompt + completion}
        return body


class Rule(Record):
    """Answers for the requests that match: all that is given of role, model, system and user must fit."""

    role: str | None = Field(None, description="role named in the first line of the system prompt")
    model: str | None = Field(None, description="regular expression found in the model's name")
    system: str | None = Field(None, description="regular expression found in the system prompt")
    user: str | None = Field(None, description="regular expression found in the last user message")
    replies: tuple[Scripted, ...] = Field(min_length=1, description="answers in order")
    then: Literal["last", "cycle", "fail"] = Field("last", description="what follows the last answer")

    _used: int = PrivateAttr(0)

    def matches(self, request: dict[str, Any]) -> bool:
        """Whether this rule answers ``request``."""
        messages = request.get("messages") or [{}]
        system = next((m.get("content", "") for m in messages if m.get("role") == "system"), "")
        checks = (
            (self.model, request.get("model", "")),
            (self.system, system),
            (self.user, messages[-1].get("content", "")),
        )
        if self.role is not None and role_of(system) != self.role:
            return False
        return all(pattern is None or re.search(pattern, text) for pattern, text in checks)

    def next(self) -> Scripted:
        """The next answer."""
        number, self._used = self._used, self._used + 1
        if number >= len(self.replies):
            if self.then == "fail":
                return Scripted(status=500, body='{"error": {"message": "the script has no further reply"}}')
            number = number % len(self.replies) if self.then == "cycle" else -1
        return self.replies[number]


class Script(Record):
    """Rules in order; the first that matches answers."""

    rules: tuple[Rule, ...] = Field(min_length=1, description="rules, first match first")

    _lock: threading.Lock = PrivateAttr(default_factory=threading.Lock)

    @classmethod
    def read(cls, path: Path) -> Script:
        """Read YAML or JSON.

        Raises:
            ConfigError: the file is not a script.
        """
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"script {str(path)!r}: {' '.join(str(error).split())}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"script {str(path)!r}: needs a mapping with 'rules'")
        return validate(cls, data, f"script {str(path)!r}")

    def answer(self, request: dict[str, Any]) -> Scripted:
        """The answer to the body of a chat request."""
        with self._lock:
            for rule in self.rules:
                if rule.matches(request):
                    return rule.next()
        return Scripted(status=404, body='{"error": {"message": "no rule of the script matches"}}')


def role_of(system: str) -> str:
    """The role that a system prompt of ours names in its first line, or an empty string."""
    found = re.match(r"Role: (\w+)", system)
    return found[1] if found else ""


class ScriptedProvider:
    """A script without a server in between; faults other than texts end in an error."""

    def __init__(self, script: Any, address: str = "scripted") -> None:
        self.script = script
        self.address = address

    async def complete(self, request: Request) -> Reply:
        """See `protocol.Provider`."""
        from planish_promptv.models.wire import Quirks, parse, payload

        body = payload(request, Quirks())
        answer: Scripted = self.script.answer(body)
        if answer.status != 200 or answer.body is not None or answer.cut is not None:
            raise EndpointUnreachable(f"script: status {answer.status} for {request.agent}")
        return parse(json.dumps(answer.completion(body)).encode(), request)

    def capabilities(self, model: str) -> Capabilities:
        """See `protocol.Provider`."""
        return Capabilities(json_mode="json_schema")

    def price(self, model: str) -> Price | None:
        """See `protocol.Provider`."""
        return None

    async def aclose(self) -> None:
        """Nothing to release."""
