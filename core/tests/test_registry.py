"""Plugins through real entry points; broken ones are kept apart, with their reason."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from planish import Method, Pipeline, builtin
from planish.errors import BrokenPlugin, MissingRequirement, PlanishError, UnknownMethod
from planish.events import Event, Events
from planish.hooks import KIND_HOOKS
from planish.method import KINDS, Benchmark, Builder, Requirement, demand, resolve
from planish.registry import Host, host

HEAD = "from planish import Method, Builder, hookimpl\n"


def offering(name: str, kind: str = "pruner", hook: str = "pruners", **extra: object) -> str:
    """Source of a plugin with one method."""
    more = "".join(f", {key}={value!r}" for key, value in extra.items())
    return HEAD + (
        f"@hookimpl\ndef {hook}():\n"
        f"    return [Method({name!r}, {kind!r}, 'a summary', config='planish_fake.config:NoConfig', "
        f"target='planish_fake.methods:same'{more})]\n"
    )


def test_entry_point_of_an_installed_distribution() -> None:
    owned = host().method("zero")
    assert (owned.distribution, owned.version) == ("planish-fake", "1.2")
    assert host().method("planish-fake:zero") == owned
    assert [p.distribution for p in host().plugins] == ["planish", "planish-fake"]
    assert not host().broken
    assert host().executor("fake") == "the executor"
    assert host().executor("other") is None


def test_kinds_and_hooks_agree() -> None:
    assert set(KINDS) == set(KIND_HOOKS)


BROKEN = {
    "import": ("raise ImportError('no libfoo here')\nx = 1\n", "ImportError: no libfoo here"),
    "exits": ("import sys\nsys.exit('needs a licence')\n", "SystemExit: needs a licence"),
    "syntax": ("def f(:\n", "SyntaxError"),
    "misspelt": (
        HEAD + "@hookimpl\ndef pruner():\n    return []\n",
        "hook 'pruner' is unknown, did you mean 'pruners'?",
    ),
    "api": (offering("from-the-future", api=2), "method 'from-the-future' speaks plugin API 2"),
    "record": (
        HEAD + "@hookimpl\ndef pruners():\n    return ['ace']\n",
        "'pruners' returned str, not Method",
    ),
    "other-record": (
        HEAD + "@hookimpl\ndef pruners():\n    return [Builder('b', 'torch', 'm:o')]\n",
        "'pruners' returned Builder, not Method",
    ),
    "kind": (offering("odd", kind="backend"), "method 'odd' of kind 'backend' came from hook 'pruners'"),
    "hook-raises": (HEAD + "@hookimpl\ndef builders():\n    return 1 / 0\n", "ZeroDivisionError"),
    "none": (HEAD + "@hookimpl\ndef builders():\n    pass\n", "TypeError"),
    "summary": (offering("odd").replace("'a summary'", "None"), "method 'odd': summary = None must be text"),
    "nameless": (offering(""), "method '': name is empty"),
    "accepts": (offering("odd", accepts="torch"), "accepts = 'torch' must be a tuple of texts"),
    "needs": (offering("odd", needs="cuda"), "needs = 'cuda' must be a tuple of texts"),
    "requires": (
        "from planish import Requirement\n"
        + offering("odd").replace(")]", ", requires=Requirement('x', 'y'))]"),
        "must be a tuple of Requirement",
    ),
    "core": (
        HEAD + "@hookimpl\ndef builders():\n    return [Builder('transformers', 'torch', 'm:o')]\n",
        "builder 'transformers': core has a builder of that name",
    ),
    "arguments": (
        HEAD + "@hookimpl\ndef open_artifact(uri):\n    raise AssertionError('a broken plugin was asked')\n"
        "@hookimpl\ndef stage_started(evnt):\n    pass\n",
        "evnt",
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_plugin_is_listed_and_the_others_work(fault: str, distribution: Callable[..., str]) -> None:
    source, reason = BROKEN[fault]
    distribution(f"planish-{fault}", source, version="0.3", entry=fault)
    (plugin,) = host().broken
    assert (plugin.distribution, plugin.version) == (f"planish-{fault}", "0.3")
    assert reason in plugin.broken
    assert "\n" not in plugin.broken
    assert not plugin.records
    assert host().method("zero").distribution == "planish-fake"
    assert host().open_artifact("nowhere:x") is None
    for name in (fault, f"planish-{fault}:anything"):
        with pytest.raises(BrokenPlugin) as error:
            host().method(name)
        assert plugin.broken in str(error.value)
        assert f"planish-{fault} 0.3" in str(error.value)


def test_method_of_a_broken_plugin_whose_name_says_nothing(distribution: Callable[..., str]) -> None:
    """The plugin cannot say what it offers, so the reason stands beside 'unknown method'."""
    distribution("planish-company", offering("from-the-future", api=2))
    with pytest.raises(UnknownMethod, match=r"planish-company 1.0, .*speaks plugin API 2"):
        host().method("from-the-future")


def test_a_submodule_that_would_hide_a_hook(distribution: Callable[..., str]) -> None:
    """After ``import package.builders`` the package's attribute ``builders`` is the module, not the hook."""
    source = HEAD + "@hookimpl\ndef builders():\n    return []\n"
    module = distribution("planish-hiding", source, beside="builders")
    (plugin,) = host().broken
    assert f"module '{module}.builders' hides the hook 'builders': rename the module" in plugin.broken


def test_broken_plugin_in_a_pipeline_check(distribution: Callable[..., str], fake_source: str) -> None:
    distribution("planish-import", BROKEN["import"][0])
    (problem,) = Pipeline().then("import").check(fake_source)
    assert "no libfoo here" in problem


def test_two_plugins_with_one_method_name(distribution: Callable[..., str]) -> None:
    distribution("planish-other", offering("zero"))
    with pytest.raises(UnknownMethod, match="planish-fake:zero or planish-other:zero"):
        host().method("zero")
    assert host().method("planish-other:zero").distribution == "planish-other"
    assert host().method("planish-fake:zero").distribution == "planish-fake"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("", []),
        (" , ", []),
        ("fake", ["planish-fake"]),
        ("planish-fake", ["planish-fake"]),
        (" other , fake ", ["planish-fake", "planish-other"]),
        ("nothing", []),
    ],
)
def test_planish_plugins_restricts_loading(
    value: str, expected: list[str], distribution: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution("planish-other", offering("another"), entry="other")
    monkeypatch.setenv("PLANISH_PLUGINS", value)
    assert [p.distribution for p in Host().plugins] == ["planish", *expected]


def test_without_planish_plugins_all_load(
    distribution: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution("planish-other", offering("another"))
    monkeypatch.delenv("PLANISH_PLUGINS")
    loaded = {p.distribution for p in Host().plugins}
    assert {"planish", "planish-fake", "planish-other"} <= loaded


def test_an_unwanted_plugin_is_not_imported(
    distribution: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution("planish-other", "raise SystemError('imported')\n")
    assert host().broken
    monkeypatch.setenv("PLANISH_PLUGINS", "fake")
    assert not Host().broken


def test_what_an_installer_left_half_removed(distribution: Callable[..., str], tmp_path: Path) -> None:
    """Metadata without the file METADATA: no name, no version, and no reason to stop."""
    distribution("planish-ghost", "raise AssertionError")
    distribution("planish-other", offering("another"))
    (info,) = (tmp_path / "site").glob("planish_ghost-*")
    (info / "METADATA").unlink()
    loaded = {
        (p.distribution, p.version, bool(p.broken)) for p in Host(only=["planish-ghost", "another"]).plugins
    }
    assert ("planish-ghost", "unknown", True) in loaded
    assert host().method("another").distribution == "planish-other"


def test_entry_point_without_a_distribution() -> None:
    loose = EntryPoint("loose", "planish_fake", "planish.plugins")
    plugin = Host([loose], only={"loose"}).plugins[-1]
    assert (plugin.distribution, plugin.version, plugin.broken) == ("loose", "unknown", "")


@pytest.mark.parametrize(
    ("name", "guess"), [("zreo", "did you mean 'zero'"), ("planish-fake:jiter", "'jitter'")]
)
def test_unknown_method_suggests(name: str, guess: str) -> None:
    with pytest.raises(UnknownMethod, match=guess) as error:
        host().method(name)
    assert "installed: absent, fail, jitter" in str(error.value)


def test_unknown_builder_and_benchmark_speak_of_their_kind() -> None:
    with pytest.raises(UnknownMethod, match="unknown builder 'x'"):
        host().builder("x")
    with pytest.raises(UnknownMethod, match=r"unknown benchmark 'y' \(installed: duel\)"):
        host().find(Benchmark, "y")


def test_evaluators_by_task() -> None:
    assert [o.record.name for o in host().evaluators("language-modelling")] == ["perplexity"]
    assert [o.record.name for o in host().evaluators("node-classification")] == ["accuracy"]
    assert host().evaluators("chess") == []


def test_missing_module_and_program_give_the_hint() -> None:
    for name, expected in {
        "absent": "method 'absent' needs the module 'planish_no_such_module': pip install no-such-module",
        "programme": "method 'programme' needs the program 'planish-no-such-program': apt-get install nothing",
    }.items():
        with pytest.raises(MissingRequirement) as error:
            demand(f"method {name!r}", host().method(name).record.requires)
        assert str(error.value) == expected


def test_requirement_below_a_missing_package() -> None:
    assert Requirement("planish_no_such_module.part", "").missing()
    assert not Requirement("json", "").missing()
    assert not Requirement("sh", "", program=True).missing()


@pytest.mark.parametrize("target", ["json", "json:", ":dumps", "json:no_such", "no_such_module:x"])
def test_bad_import_strings(target: str) -> None:
    with pytest.raises(PlanishError) as error:
        resolve(target)
    assert "\n" not in str(error.value)


def test_resolve() -> None:
    import json

    assert resolve("json:dumps") is json.dumps


def test_core_s_own_targets_resolve() -> None:
    for record in [*builtin.builders(), *builtin.evaluators()]:
        assert callable(resolve(record.target))


def test_records_are_immutable_and_comparable() -> None:
    one = Method("a", "pruner", "s", "m:c", "m:t")
    assert one == Method("a", "pruner", "s", "m:c", "m:t")
    assert hash(Builder("a", "torch", "m:o")) == hash(Builder("a", "torch", "m:o"))
    with pytest.raises(AttributeError):
        one.name = "b"  # type: ignore[misc]


def test_observers_hear_and_may_fail(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    host()
    from planish_fake import EVENTS

    EVENTS.clear()
    monkeypatch.setenv("FAKE_OBSERVER", "raises")
    heard: list[Event] = []
    events = Events(tmp_path, (lambda event: 1 / 0, heard.append))  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING, logger="planish"):
        events.emit(Event("stage_started", "01 zero"))
        events.emit(Event("stage_failed", "01 zero"))
        events.emit(Event("note", "01 zero"))
    events.close()
    assert [e.type for e in heard] == ["stage_started", "stage_failed", "note"]
    assert [heard[0], "failed"] == EVENTS
    reasons = [str(r.exc_info[1]) for r in caplog.records if r.exc_info]
    assert reasons == ["observer's own trouble", *["division by zero"] * 3]
