"""The OpenAI chat format: what is sent, what comes back, and the many ways in which servers say no."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from planish_promptv.models.protocol import Reply, Request, Usage, estimate_tokens, without_reasoning

JsonMode = Literal["json_schema", "json_object", "none"]
WEAKER: dict[JsonMode, JsonMode] = {"json_schema": "json_object", "json_object": "none"}
LONGEST = 1 << 18
"""Characters of a reply that are read, its reasoning taken off; a longer one counts as cut."""
OPTIONAL = ("seed", "temperature", "top_p")
_OVERFLOW = re.compile(
    r"context.?length|context window|maximum context|context size|prompt is too long|too many (?:input )?tokens",
    re.I,
)
_FILTER = re.compile(r"content.?(?:filter|policy|management)", re.I)
_QUOTA = re.compile(r"insufficient.?quota|billing|exceeded your current quota", re.I)


@dataclass(slots=True)
class Quirks:
    """What one model at one endpoint has refused so far, so that it is not asked again.

    Attributes:
        json_mode: the strongest form of JSON reply that it has not refused.
        dropped: optional parameters that it refused.
        limit_name: its name for the largest length of a reply.
    """

    json_mode: JsonMode = "json_schema"
    dropped: set[str] = field(default_factory=set)
    limit_name: str = "max_tokens"

    def learn(self, payload: dict[str, Any], message: str) -> bool:
        """Adapt to a refusal that names a parameter of ``payload``; False where it names none that can be spared."""
        if "max_completion_tokens" in message and "max_tokens" in payload:
            self.limit_name = "max_completion_tokens"
            return True
        if "response_format" in payload and re.search(
            r"response_format|json_schema|json_object|json.?mode", message, re.I
        ):
            sent: JsonMode = payload["response_format"]["type"]
            if WEAKER.get(self.json_mode) and sent == self.json_mode:
                self.json_mode = WEAKER[self.json_mode]
            return True
        for name in OPTIONAL:
            if name in payload and re.search(rf"\b{name}\b", message):
                self.dropped.add(name)
                return True
        return False


def payload(request: Request, quirks: Quirks) -> dict[str, Any]:
    """The body of a chat completion request."""
    body: dict[str, Any] = {
        "model": request.model,
        "messages": [message.model_dump() for message in request.messages],
        "stream": False,
        quirks.limit_name: request.max_tokens,
    }
    for name in OPTIONAL:
        if name not in quirks.dropped:
            body[name] = getattr(request, name)
    if request.json_schema is not None and quirks.json_mode == "json_schema":
        named = {"name": request.schema_name, "schema": request.json_schema}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    elif request.json_schema is not None and quirks.json_mode == "json_object":
        body["response_format"] = {"type": "json_object"}
    return body


class BadAnswer(Exception):
    """A body that is no chat completion: worth another try. ``error`` is what it says, where it says something."""


def parse(body: bytes, request: Request) -> Reply:
    """The reply in the body of a successful response.

    Raises:
        BadAnswer: not JSON, cut off, an error in spite of the status, or without choices.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise BadAnswer(f"the answer is not JSON ({len(body)} bytes)") from None
    if not isinstance(data, dict):
        raise BadAnswer("the answer is not a JSON object")
    if data.get("error"):
        raise BadAnswer(error_text(body))
    try:
        choice = data["choices"][0]
        message = choice["message"]
        text = _content(message.get("content"))
    except (KeyError, IndexError, TypeError, AttributeError):
        raise BadAnswer("the answer holds no choices") from None
    text = without_reasoning(_storable(text))
    finish = _storable(str(choice.get("finish_reason") or "stop"))
    usage = _usage(data.get("usage"), request, text)
    return Reply(
        text=text[:LONGEST],
        finish_reason="length" if len(text) > LONGEST else finish,
        usage=usage,
        model=_storable(str(data.get("model") or request.model)),
    )


def _storable(text: str) -> str:
    """JSON may escape half of a surrogate pair, which no file takes: a question mark stands for it."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _content(content: Any) -> str:
    """Text of a message: a string, nothing, or a list of parts."""
    if content is None:
        return ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if part.get("type") == "text")
    return str(content)


def _usage(usage: Any, request: Request, text: str) -> Usage:
    """What the server counted, or our estimate where it did not: no prompt has 0 tokens."""
    try:
        if (prompt := int(usage["prompt_tokens"])) < 1:
            raise ValueError
        return Usage(prompt=prompt, completion=int(usage["completion_tokens"]))
    except (KeyError, TypeError, ValueError, OverflowError):
        return Usage(prompt=request.length, completion=estimate_tokens(text), estimated=True)


def error_text(body: bytes) -> str:
    """What a server says is wrong, in one line of at most 300 characters."""
    text = body[:20000].decode("utf-8", "replace")
    try:
        data = json.loads(text)
        error = data.get("error", data) if isinstance(data, dict) else data
        if isinstance(error, dict):
            parts = [error.get(name) for name in ("code", "message", "param", "detail")]
            text = ": ".join(str(part) for part in parts if part) or text
        else:
            text = str(error)
    except (ValueError, RecursionError):
        pass
    return " ".join(_storable(text).split())[:300]


def is_overflow(message: str) -> bool:
    """The prompt is too long for the model."""
    return bool(_OVERFLOW.search(message))


def is_filtered(message: str) -> bool:
    """The endpoint's content filter refused this prompt; others may pass."""
    return bool(_FILTER.search(message))


def is_quota(message: str) -> bool:
    """No money left: waiting does not help."""
    return bool(_QUOTA.search(message))
