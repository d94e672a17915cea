"""Waiting, keys, requests, the ledger and scripts."""

from __future__ import annotations

import asyncio
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.errors import ConfigError, RunError
from planish_promptv.jsonl import JsonLines, read
from planish_promptv.models.ledger import Ledger, RecordingProvider
from planish_promptv.models.limits import TokenBucket, backoff, retry_after
from planish_promptv.models.protocol import Message, ReplayMiss, Reply, Request, Usage
from planish_promptv.models.scripted import Script, ScriptedProvider
from planish_promptv.models.secrets import Key, scrub

REQUEST = Request(
    agent="coder",
    model="m",
    messages=(Message(role="user", content="hello"),),
    temperature=0.8,
    top_p=0.95,
    max_tokens=64,
    seed=7,
)


@settings(deadline=None)
@given(st.lists(st.floats(0.1, 50), min_size=1, max_size=60), st.floats(1, 1000))
def test_token_bucket_never_lets_more_through_than_its_rate(amounts: list[float], per_minute: float) -> None:
    now = 0.0
    bucket = TokenBucket(per_minute, clock=lambda: now)
    total = 0.0
    for amount in amounts:
        now += bucket.take(amount)
        total += amount
        assert total <= per_minute + now * per_minute / 60 + 1e-6


def test_token_bucket_without_a_limit_and_corrected() -> None:
    assert TokenBucket(None).take(1e9) == 0
    bucket = TokenBucket(60, clock=lambda: 0.0)
    assert bucket.take(60) == 0
    assert bucket.take(6) == pytest.approx(6)
    bucket.settle(-6)
    assert bucket.level == pytest.approx(0)


@settings(deadline=None)
@given(st.integers(1, 30), st.floats(0, 10), st.floats(0, 60), st.one_of(st.none(), st.floats(0, 100)))
def test_backoff_is_full_jitter_above_what_the_server_asks(
    failures: int, base: float, cap: float, asked: float | None
) -> None:
    wait = backoff(failures, base, cap, asked, random.Random(0))
    least = asked or 0.0
    assert least <= wait <= least + min(cap, base * 2 ** (failures - 1))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2", 2), ("0.5", 0.5), ("-3", 0), (None, None), ("soon", None), ("inf", None),
     ("Thu, 01 Jan 1970 00:01:40 GMT", 40), ("Thu, 01 Jan 1970 00:00:01 GMT", 0)],
)  # fmt: skip
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, now=lambda: 60.0) == seconds


def test_keys_do_not_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "very-secret-value")
    key = Key.read("SOME_KEY")
    assert key is not None
    assert "secret" not in f"{key} {key!r}"
    assert scrub("got very-secret-value, and Bearer abcdefgh12, and sk-proj-AAAABBBBCC", key) == (
        "got [redacted], and [redacted], and [redacted]"
    )


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"sample": 1}, {"attempt": 1}, {"round": 1}, {"ask": 1}, {"model": "n"}, {"temperature": 0.2},
     {"messages": (Message(role="user", content="hello "),)}, {"task": "t"}, {"agent": "teacher"}],
)  # fmt: skip
def test_everything_that_matters_is_in_the_key(change: dict[str, Any]) -> None:
    assert REQUEST.model_copy(update=change).key("p") != REQUEST.key("p")
    assert REQUEST.key("p") != REQUEST.key("q")


class Counting(ScriptedProvider):
    calls = 0

    async def complete(self, request: Request) -> Reply:
        self.calls += 1
        return Reply(text=f"answer {self.calls}", usage=Usage(prompt=1, completion=2))


def test_ledger_pays_once_and_replays(tmp_path: Path) -> None:
    path = tmp_path / "calls.jsonl"
    inner = Counting(None)
    ledger = Ledger(path)
    first = asyncio.run(RecordingProvider(ledger, inner).complete(REQUEST))
    ledger.close()
    again = Ledger(path)
    assert asyncio.run(RecordingProvider(again, inner).complete(REQUEST)) == first
    assert inner.calls == 1
    replaying = RecordingProvider(Ledger(path, frozen=True), None, "scripted")
    assert asyncio.run(replaying.complete(REQUEST)) == first
    with pytest.raises(ReplayMiss, match="no recorded call for coder"):
        asyncio.run(replaying.complete(REQUEST.model_copy(update={"sample": 3})))


@settings(deadline=None)
@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3), min_size=1, max_size=6),
    st.data(),
)
def test_a_torn_last_line_is_dropped_and_written_over(
    tmp_path_factory: pytest.TempPathFactory, lines: list[dict[str, str]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("torn") / "x.jsonl"
    file = JsonLines(path)
    for line in lines:
        file.append(line, sync=False)
    file.close()
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[: data.draw(st.integers(start, len(whole) - 1))])
    assert list(read(path)) == lines[:-1]
    again = JsonLines(path)
    again.append(lines[-1])
    again.close()
    assert path.read_bytes() == whole


def test_damage_inside_a_file_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\nnonsense\n{"a": 2}\n')
    with pytest.raises(RunError, match="line 2 is damaged"):
        list(read(path))


def test_a_full_disk_keeps_whole_lines_and_says_so() -> None:
    """A device that is always full: what is written to it is refused as by a full disk."""
    file = JsonLines.__new__(JsonLines)
    file.path = Path("/dev/full")
    file._file = os.open("/dev/full", os.O_RDWR)
    file._end = 0
    with pytest.raises(RunError, match="the disk is full; what was finished is kept"):
        file.append({"a": 1})
    file.close()


@pytest.mark.parametrize(
    ("data", "message"),
    [({"rules": []}, "rules"), ({"rules": [{"replies": []}]}, "replies"), ({"rules": [{"replies": [{"txt": "a"}]}]}, "unknown field"),
     ({"rules": [{"replies": [{"text": "a", "code": "b"}]}]}, "give one of text, code and json"), ([1], "needs a mapping")],
)  # fmt: skip
def test_scripts_are_checked(tmp_path: Path, data: Any, message: str) -> None:
    path = tmp_path / "script.yaml"
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match=message):
        Script.read(path)


def test_script_rules_run_out_as_they_say() -> None:
    def texts(then: str) -> list[str | None]:
        script = Script.model_validate({"rules": [{"replies": [{"text": "a"}, {"text": "b"}], "then": then}]})
        return [script.answer({"messages": []}).content for _ in range(4)]

    assert texts("last") == ["a", "b", "b", "b"]
    assert texts("cycle") == ["a", "b", "a", "b"]
    assert texts("fail") == ["a", "b", None, None]
