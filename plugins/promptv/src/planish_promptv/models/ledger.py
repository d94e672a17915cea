"""The ledger: every paid reply, on disk before it is used. A run that is resumed or replayed pays for nothing twice."""

from __future__ import annotations

import time
from pathlib import Path

from pydantic import ValidationError

from planish.errors import RunError
from planish_promptv.jsonl import JsonLines, read
from planish_promptv.models.prices import Prices
from planish_promptv.models.protocol import Capabilities, Price, Provider, ReplayMiss, Reply, Request


class Ledger:
    """Replies by request key, in one growing file.

    Args:
        path: the file. frozen: only read it.

    Raises:
        RunError: the file is damaged or cannot be written.
    """

    def __init__(self, path: Path, frozen: bool = False) -> None:
        self.path = path
        self._lines = None if frozen else JsonLines(path)
        self._replies: dict[str, Reply] = {}
        for line in read(path):
            try:
                self._replies[line["key"]] = Reply.model_validate(line["reply"])
            except (KeyError, ValidationError):
                raise RunError(f"{path}: holds something else than recorded calls") from None

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        """The recorded reply, or None."""
        return self._replies.get(key)

    def put(self, key: str, provider: str, request: Request, reply: Reply) -> None:
        """Record a reply; it is on the disk when this returns."""
        assert self._lines is not None
        self._lines.append(
            {
                "key": key,
                "time": time.time(),
                "provider": provider,
                "request": request.model_dump(mode="json"),
                "reply": reply.model_dump(mode="json"),
            }
        )
        self._replies[key] = reply

    def close(self) -> None:
        """Close the file."""
        if self._lines is not None:
            self._lines.close()


class RecordingProvider:
    """Answers from the ledger, and asks ``inner`` only for what it does not hold.

    Args:
        inner: the provider that is paid; None replays without any, and a missing call is an error.
        address, prices: the provider's address in keys and its price table, where ``inner`` is None.

    Attributes:
        paid: calls that went to ``inner``.
    """

    def __init__(
        self, ledger: Ledger, inner: Provider | None, address: str = "", prices: Prices | None = None
    ) -> None:
        self.ledger = ledger
        self.inner = inner
        self.address = inner.address if inner else address
        self.paid = 0
        self._prices = prices or Prices()

    async def complete(self, request: Request) -> Reply:
        """See `protocol.Provider`.

        Raises:
            ReplayMiss: there is no inner provider and the call was not recorded.
        """
        key = request.key(self.address)
        if (known := self.ledger.get(key)) is not None:
            return known
        if self.inner is None:
            where = (
                f"{request.agent} of task {request.task!r}, sample {request.sample}, round {request.round}"
            )
            raise ReplayMiss(
                f"{self.ledger.path}: no recorded call for {where}: the run it belongs to was another"
            )
        reply = await self.inner.complete(request)
        self.paid += 1
        self.ledger.put(key, self.address, request, reply)
        return reply

    def capabilities(self, model: str) -> Capabilities:
        """See `protocol.Provider`."""
        return self.inner.capabilities(model) if self.inner else Capabilities()

    def price(self, model: str) -> Price | None:
        """See `protocol.Provider`."""
        return self.inner.price(model) if self.inner else self._prices.of(model)

    async def aclose(self) -> None:
        """See `protocol.Provider`."""
        if self.inner:
            await self.inner.aclose()
