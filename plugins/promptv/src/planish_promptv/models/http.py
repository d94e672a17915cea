"""Any endpoint that speaks the OpenAI chat format: a thin asynchronous client with retries and rate limits."""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpcore  # noqa: F401 - httpx imports it in its first client, when other threads may be importing too
import httpx

from planish.errors import ConfigError
from planish_promptv.models import wire
from planish_promptv.models.limits import TokenBucket, backoff, retry_after
from planish_promptv.models.prices import Prices
from planish_promptv.models.protocol import (
    Capabilities,
    ContextOverflow,
    EndpointUnreachable,
    KeyRefused,
    ModelError,
    Price,
    Reply,
    Request,
    RequestRefused,
)
from planish_promptv.models.secrets import Key, scrub

LARGEST_BODY = 16 << 20
LOCAL = ("localhost", "127.0.0.1", "::1")
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529})
ADAPTATIONS = 8


@dataclass(frozen=True, slots=True)
class Patience:
    """How a client treats time.

    Attributes:
        timeout: seconds that one request may take in all, a slow drip included.
        tries: requests for one reply.
        base, cap: seconds of the exponential backoff, see `limits.backoff`.
        longest_wait: a Retry-After beyond this ends the run instead, resumable.
    """

    timeout: float = 120.0
    tries: int = 5
    base: float = 1.0
    cap: float = 60.0
    longest_wait: float = 300.0


@dataclass(slots=True)
class _Failure(Exception):
    """One try that failed in a way that may pass."""

    reason: str
    asked: float | None = None


class OpenAICompatProvider:
    """Chat completions from ``base_url``, streaming off.

    Args:
        base_url: for instance ``http://localhost:11434/v1``.
        key_variable: environment variable that holds the key; None sends none.
        prices: the price table.
        concurrency: requests in flight at once.
        requests_per_minute, tokens_per_minute: limits of the account; None is no limit.
        transport: replaces the network in tests.

    Raises:
        ConfigError: the URL or the variable does not serve.
    """

    def __init__(
        self,
        base_url: str,
        key_variable: str | None = None,
        prices: Prices | None = None,
        patience: Patience | None = None,
        concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.address = _checked(base_url)
        self._key = Key.read(key_variable)
        self._prices = prices or Prices()
        self._patience = patience or Patience()
        self._requests = TokenBucket(requests_per_minute)
        self._tokens = TokenBucket(tokens_per_minute)
        self._slots = asyncio.Semaphore(concurrency)
        self._quirks: dict[str, wire.Quirks] = {}
        self._rng = random.Random()
        loopback = urlsplit(self.address).hostname in LOCAL
        self._client = httpx.AsyncClient(
            headers=self._key.header() if self._key else {},
            timeout=httpx.Timeout(self._patience.timeout, connect=min(10.0, self._patience.timeout)),
            transport=transport,
            trust_env=not loopback,  # a proxy cannot reach this machine's loopback
        )

    async def complete(self, request: Request) -> Reply:
        """See `protocol.Provider`."""
        started = time.monotonic()
        quirks = self._quirks.setdefault(request.model, wire.Quirks())
        failures = adapted = 0
        while True:
            body = wire.payload(request, quirks)
            try:
                reply = await self._try(request, body)
            except _Refused as refusal:
                # A refused parameter is learned once for all later requests and is no failure of the endpoint.
                adapted += 1
                if adapted > ADAPTATIONS or not quirks.learn(body, refusal.message):
                    raise RequestRefused(self._say(f"refuses the request: {refusal.message}")) from None
                continue
            except _Failure as failure:
                failures += 1
                if failures >= self._patience.tries:
                    raise EndpointUnreachable(
                        self._say(f"no usable answer in {failures} tries: {failure.reason}")
                    ) from None
                if failure.asked is not None and failure.asked > self._patience.longest_wait:
                    raise EndpointUnreachable(
                        self._say(f"asks to wait {failure.asked:.0f} s: {failure.reason}")
                    ) from None
                await asyncio.sleep(
                    backoff(failures, self._patience.base, self._patience.cap, failure.asked, self._rng)
                )
                continue
            return reply.model_copy(
                update={"latency_s": time.monotonic() - started, "tries": failures + adapted + 1}
            )

    def capabilities(self, model: str) -> Capabilities:
        """See `protocol.Provider`."""
        quirks = self._quirks.get(model)
        if quirks is None:
            return Capabilities()
        return Capabilities(json_mode=quirks.json_mode, dropped=tuple(sorted(quirks.dropped)))

    def price(self, model: str) -> Price | None:
        """See `protocol.Provider`."""
        return self._prices.of(model)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _try(self, request: Request, body: dict[str, object]) -> Reply:
        expected = request.length + request.max_tokens
        await self._requests.acquire(1)
        await self._tokens.acquire(expected)
        try:
            async with self._slots, asyncio.timeout(self._patience.timeout):
                response, content = await self._send(body)
        except TimeoutError:
            raise _Failure(f"no answer within {self._patience.timeout:g} s") from None
        except httpx.HTTPError as error:
            raise _Failure(scrub(f"{type(error).__name__}: {error}".rstrip(": "), self._key)) from None
        reply = self._judge(request, response, content)
        self._tokens.settle(reply.usage.total - expected)
        return reply

    async def _send(self, body: dict[str, object]) -> tuple[httpx.Response, bytes]:
        async with self._client.stream("POST", f"{self.address}/chat/completions", json=body) as response:
            content = bytearray()
            async for piece in response.aiter_bytes():
                content += piece
                if len(content) > LARGEST_BODY:
                    raise _Failure(f"the answer is longer than {LARGEST_BODY >> 20} MiB")
        return response, bytes(content)

    def _judge(self, request: Request, response: httpx.Response, content: bytes) -> Reply:
        """The reply, or the kind of failure that the response is."""
        status = response.status_code
        if status == 200:
            try:
                reply = wire.parse(content, request)
            except wire.BadAnswer as error:
                message = scrub(str(error), self._key)
                if wire.is_overflow(message):
                    raise ContextOverflow(self._say(message)) from None
                raise _Failure(message) from None
            return reply.model_copy(update={"text": self._key.scrub(reply.text) if self._key else reply.text})
        message = scrub(wire.error_text(content), self._key) or f"HTTP {status}"
        if status in (401, 403):
            raise KeyRefused(self._say(f"{self._about_key()}: {message}"))
        if wire.is_quota(message):
            raise ModelError(self._say(f"the account has no quota left: {message}"))
        if status in PASSING:
            raise _Failure(f"HTTP {status}: {message}", retry_after(response.headers.get("retry-after")))
        if status == 404:
            raise RequestRefused(self._say(f"knows no model {request.model!r} or no such path: {message}"))
        if status in (400, 413, 422):
            if status == 413 or wire.is_overflow(message):
                raise ContextOverflow(self._say(message))
            if wire.is_filtered(message):
                return Reply(text="", finish_reason="content_filter", model=request.model)
            raise _Refused(message)
        raise RequestRefused(self._say(f"HTTP {status}: {message}"))

    def _about_key(self) -> str:
        if self._key is None:
            return "wants a key; name the environment variable that holds it (api_key_env, --key-env)"
        return f"refuses the key in ${self._key.variable}"

    def _say(self, text: str) -> str:
        return f"model endpoint {self.address}: {text}"


class _Refused(Exception):
    """A 400 that may be about a parameter."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def _checked(base_url: str) -> str:
    """``base_url`` without a trailing slash.

    Raises:
        ConfigError: no URL, not http(s), or it carries credentials or a query, which would end up in traces.
    """
    try:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError
        httpx.URL(base_url)
    except (ValueError, httpx.InvalidURL):
        raise ConfigError(
            "base_url: give a URL such as http://localhost:11434/v1 or https://HOST/v1"
        ) from None
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError("base_url: no user, password or query in the URL; keys come from api_key_env")
    return base_url.rstrip("/").removesuffix("/chat/completions")
