"""The client against real HTTP: retries, limits, refusals, keys."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import httpx
import pytest

from planish.errors import ConfigError
from planish_promptv.models.http import OpenAICompatProvider, Patience
from planish_promptv.models.prices import Prices
from planish_promptv.models.protocol import (
    ContextOverflow,
    EndpointUnreachable,
    KeyRefused,
    Message,
    ModelError,
    Price,
    Reply,
    Request,
    RequestRefused,
)
from planish_promptv.models.scripted import Script
from planish_promptv.models.secrets import Key
from planish_promptv.models.server import ScriptedServer
from planish_promptv.models.wire import LONGEST, parse

QUICK = Patience(base=0.0, timeout=20.0)
SECRET = "sk-test-0123456789abcdef"


def request(**changes: Any) -> Request:
    given: dict[str, Any] = {
        "agent": "coder",
        "model": "m",
        "messages": (Message(role="system", content="Role: coder"), Message(role="user", content="hello")),
        "temperature": 0.8,
        "top_p": 0.95,
        "max_tokens": 64,
        "seed": 7,
    }
    return Request(**{**given, **changes})


def ask(provider: OpenAICompatProvider, *requests: Request) -> list[Reply]:
    async def main() -> list[Reply]:
        try:
            return await asyncio.gather(*(provider.complete(r) for r in requests or (request(),)))
        finally:
            await provider.aclose()

    return asyncio.run(main())


def serve(*replies: dict[str, Any], **options: Any) -> ScriptedServer:
    script = {"rules": [{"replies": [*replies, {"text": "fine"}]}]}
    return ScriptedServer(Script.model_validate(script), **options)


def mocked(
    *answers: httpx.Response | Exception, **options: Any
) -> tuple[OpenAICompatProvider, list[dict[str, Any]]]:
    """A provider whose network is a list of answers, and the bodies that were sent."""
    sent: list[dict[str, Any]] = []
    left = list(answers)

    def handle(incoming: httpx.Request) -> httpx.Response:
        sent.append(json.loads(incoming.content))
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    transport = httpx.MockTransport(handle)
    return OpenAICompatProvider("https://host/v1", patience=QUICK, transport=transport, **options), sent


def chat(content: Any = "fine", **extra: Any) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"content": content}}], **extra})


def refuse(status: int, message: str, code: str = "") -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": message, "code": code}})


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 429},
        {"status": 429, "retry_after": 0.01},
        {"status": 500},
        {"status": 503, "body": "<html>busy</html>"},
        {"text": "cut", "cut": 20},
        {"text": "nothing at all", "cut": 0},
        {"body": "not json"},
        {"body": '{"choices": []}'},
        {"body": '{"error": {"message": "overloaded"}}'},
    ],
    ids=[
        "429",
        "429 with Retry-After",
        "500",
        "503 html",
        "cut",
        "empty",
        "no json",
        "no choices",
        "error with 200",
    ],
)
def test_faults_that_pass_are_tried_again(fault: dict[str, Any]) -> None:
    with serve(fault, fault) as server:
        (reply,) = ask(OpenAICompatProvider(server.url, patience=QUICK))
        assert (reply.text, reply.tries, len(server.requests)) == ("fine", 3, 3)


def test_request_is_plain_chat_with_streaming_off() -> None:
    with serve() as server:
        ask(
            OpenAICompatProvider(server.url, patience=QUICK),
            request(json_schema={"type": "object"}, schema_name="x"),
        )
        (body,) = server.requests
    assert body["stream"] is False
    assert (body["temperature"], body["top_p"], body["max_tokens"], body["seed"]) == (0.8, 0.95, 64, 7)
    assert body["response_format"]["json_schema"]["name"] == "x"


def test_gives_up_after_the_tries_and_says_why() -> None:
    with serve(*[{"status": 503}] * 9) as server:
        provider = OpenAICompatProvider(server.url, patience=Patience(base=0.0, tries=3))
        with pytest.raises(EndpointUnreachable, match="no usable answer in 3 tries: HTTP 503"):
            ask(provider)
        assert len(server.requests) == 3


def test_unreachable_endpoint_is_one_line() -> None:
    provider = OpenAICompatProvider("http://127.0.0.1:9/v1", patience=Patience(base=0.0, tries=2))
    with pytest.raises(
        EndpointUnreachable, match=r"http://127.0.0.1:9/v1: no usable answer in 2 tries: ConnectError"
    ):
        ask(provider)


def test_slow_answers_time_out() -> None:
    with serve({"text": "late", "delay": 30.0}) as server:
        (reply,) = ask(OpenAICompatProvider(server.url, patience=Patience(base=0.0, timeout=3.0)))
        assert reply.tries >= 2


def test_retry_after_is_honoured() -> None:
    with serve({"status": 429, "retry_after": 0.6}) as server:
        started = time.monotonic()
        ask(OpenAICompatProvider(server.url, patience=QUICK))
        assert time.monotonic() - started >= 0.6


def test_retry_after_beyond_patience_ends_the_run() -> None:
    provider, _ = mocked(httpx.Response(429, headers={"Retry-After": "86400"}, json={}))
    with pytest.raises(EndpointUnreachable, match="asks to wait 86400 s"):
        ask(provider)


def test_wrong_and_missing_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMPTV_TEST_KEY", SECRET)
    with serve(key=Key("ANOTHER", "another")) as server:
        with pytest.raises(KeyRefused, match=r"refuses the key in \$PROMPTV_TEST_KEY") as caught:
            ask(OpenAICompatProvider(server.url, "PROMPTV_TEST_KEY", patience=QUICK))
        assert SECRET not in str(caught.value), "the server echoes the key; the error must not"
        with pytest.raises(KeyRefused, match="wants a key; name the environment variable"):
            ask(OpenAICompatProvider(server.url, patience=QUICK))
        assert not server.requests, "neither is tried again"
    with serve(key=Key("PROMPTV_TEST_KEY", SECRET)) as server:
        (reply,) = ask(OpenAICompatProvider(server.url, "PROMPTV_TEST_KEY", patience=QUICK))
        assert reply.text == "fine"
    monkeypatch.setenv("PROMPTV_TEST_KEY", SECRET + "\n…")
    with pytest.raises(ConfigError, match="cannot be a key") as odd:
        OpenAICompatProvider("http://localhost/v1", "PROMPTV_TEST_KEY")
    assert SECRET not in str(odd.value)
    monkeypatch.delenv("PROMPTV_TEST_KEY")
    with pytest.raises(ConfigError, match="this environment variable is not set"):
        OpenAICompatProvider("http://localhost/v1", "PROMPTV_TEST_KEY")
    with pytest.raises(ConfigError, match="never the key itself") as given:
        OpenAICompatProvider("http://localhost/v1", SECRET)
    assert SECRET not in str(given.value)


@pytest.mark.parametrize(
    "url",
    [
        "localhost:80",
        "ftp://host",
        "https://user:pass@host/v1",
        "https://host/v1?key=x",
        "",
        "http://[::1",
        "http://h:99999/v1",
        "http://h:0",
    ],
)
def test_urls_that_do_not_serve(url: str) -> None:
    with pytest.raises(ConfigError, match="base_url") as caught:
        OpenAICompatProvider(url)
    assert "pass" not in str(caught.value).replace("password", "")


def test_model_without_json_mode_is_asked_without_it_from_then_on() -> None:
    with serve(refuse_json_mode=True) as server:
        provider = OpenAICompatProvider(server.url, patience=QUICK)
        wants = request(json_schema={"type": "object"}, schema_name="x")

        async def twice() -> None:
            for _ in range(2):
                await provider.complete(wants)
            assert provider.capabilities("m").json_mode == "none"
            await provider.aclose()

        asyncio.run(twice())
        formats = [body.get("response_format", {}).get("type") for body in server.requests]
    assert formats == ["json_schema", "json_object", None, None]


def test_refused_parameters_are_left_out() -> None:
    provider, sent = mocked(
        refuse(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
        refuse(400, "Unsupported value: 'temperature' does not support 0.8"),
        refuse(422, "extra fields not permitted: seed"),
        chat(),
    )
    ask(provider)
    assert "max_completion_tokens" in sent[1]
    assert "max_tokens" not in sent[1]
    assert {"temperature", "seed"}.isdisjoint(sent[3])


@pytest.mark.parametrize(
    ("answer", "error", "match"),
    [
        (refuse(400, "messages is malformed"), RequestRefused, "messages is malformed"),
        (refuse(404, "model 'm' not found"), RequestRefused, "knows no model 'm'"),
        (refuse(400, "too long", "context_length_exceeded"), ContextOverflow, "context_length"),
        (refuse(413, "payload"), ContextOverflow, "payload"),
        (refuse(429, "You exceeded your current quota", "insufficient_quota"), ModelError, "no quota left"),
    ],
)
def test_answers_that_are_not_tried_again(answer: httpx.Response, error: type[Exception], match: str) -> None:
    provider, sent = mocked(answer)
    with pytest.raises(error, match=match):
        ask(provider)
    assert len(sent) == 1


def test_content_filter_is_an_empty_reply_not_the_end_of_the_run() -> None:
    provider, _ = mocked(refuse(400, "blocked", "content_filter"))
    (reply,) = ask(provider)
    assert (reply.text, reply.finish_reason) == ("", "content_filter")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, ""),
        ("", ""),
        ([{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}], "ab"),
        ("<think>module x;</think>\nanswer", "answer"),
        ("hidden thought</think>answer", "answer"),
        ("answer <think>cut", "answer"),
        ("a <think>one</think>b <THINK>two <think>three</think>c", "a b c"),
        ("<think>" * 100_000, ""),
    ],
)
def test_contents(content: Any, text: str) -> None:
    provider, _ = mocked(chat(content))
    (reply,) = ask(provider)
    assert reply.text == text
    assert reply.usage.estimated, "this server counts no tokens"


def test_half_of_a_surrogate_pair_can_be_stored() -> None:
    body = {"choices": [{"message": {"content": "half \ud800 a pair"}, "finish_reason": "\udfff"}]}
    reply = parse(json.dumps(body).encode(), request())
    assert (reply.text, reply.finish_reason) == ("half ? a pair", "?")


def test_an_endless_reply_counts_as_cut() -> None:
    provider, _ = mocked(chat("x" * (LONGEST + 1)))
    (reply,) = ask(provider)
    assert (len(reply.text), reply.finish_reason) == (LONGEST, "length")


@pytest.mark.parametrize("prompt", [0, -3, 1e400, "many", None])
def test_counts_that_cannot_be_are_estimated(prompt: Any) -> None:
    body = {
        "choices": [{"message": {"content": "x"}}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": 1},
    }
    assert parse(json.dumps(body).encode(), request()).usage.estimated


def test_usage_and_reasoning_field() -> None:
    with serve({"text": "yes", "reasoning": "module wrong; endmodule"}) as server:
        (reply,) = ask(OpenAICompatProvider(server.url, patience=QUICK))
    assert reply.text == "yes"
    assert not reply.usage.estimated
    assert reply.usage.total > 0


def test_concurrency_is_limited() -> None:
    busy = most = 0

    async def handle(incoming: httpx.Request) -> httpx.Response:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        await asyncio.sleep(0.01)
        busy -= 1
        return chat()

    provider = OpenAICompatProvider("https://host/v1", concurrency=3, transport=httpx.MockTransport(handle))
    ask(provider, *[request(sample=n) for n in range(12)])
    assert most == 3


def test_a_huge_answer_is_cut_off() -> None:
    provider, _ = mocked(httpx.Response(200, content=b"x" * (17 << 20)), chat())
    (reply,) = ask(provider)
    assert reply.tries == 2


def test_prices_take_the_longest_match(tmp_path: Any) -> None:
    path = tmp_path / "prices.toml"
    path.write_text('["big*"]\nprompt = 1\ncompletion = 2\n["big-one"]\nprompt = 3\ncompletion = 4\n')
    prices = Prices.read(path)
    assert prices.of("big-two") == Price(prompt=1, completion=2)
    assert prices.of("big-one") == Price(prompt=3, completion=4)
    assert prices.of("small") is None
    for text in ("x = 1", '["a"]\nprompt = -1\ncompletion = 0', "["):
        path.write_text(text)
        with pytest.raises(ConfigError, match="prices"):
            Prices.read(path)
