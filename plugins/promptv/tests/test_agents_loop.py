"""Every path of the loop: scripts over real HTTP, real Icarus in between."""

from __future__ import annotations

import asyncio
from typing import Any

import promptv_designs as designs
import pytest

from planish_promptv.agents.generate import generate
from planish_promptv.agents.result import GenerationResult
from planish_promptv.config import GenerationConfig
from planish_promptv.models.scripted import Script
from planish_promptv.models.server import ScriptedServer

FIX = designs.advice("the clock edge is wrong")
NOTHING = designs.advice()


def play(simulator: Any, script: dict[str, Any], **options: Any) -> tuple[GenerationResult, ScriptedServer]:
    """Generate the counter against a scripted server."""
    with ScriptedServer(Script.model_validate(script)) as server:
        config = GenerationConfig(base_url=server.url, model="scripted", retry_base=0.0, **options)
        result = asyncio.run(generate(designs.TASK, config, simulator=simulator))
    return result, server


def roles(server: ScriptedServer) -> list[str]:
    from planish_promptv.models.scripted import role_of

    return [role_of(request["messages"][0]["content"]) for request in server.requests]


def test_draft_that_passes_costs_two_calls(simulator: Any) -> None:
    result, server = play(simulator, designs.script(coder=designs.GOOD, bencher=designs.GOOD_BENCH))
    assert (result.state, result.calls, result.rounds) == ("success", 2, 0)
    assert sorted(roles(server)) == ["bencher", "coder"]
    assert result.code == designs.GOOD
    assert result.quality is not None
    assert not result.quality.vacuous


def test_compile_error_then_failure_then_pass_with_two_rate_limits_in_between(simulator: Any) -> None:
    limited = {"status": 429, "retry_after": 0.01}
    script = designs.script(
        coder=[limited, designs.TYPO],
        bencher=[designs.GOOD_BENCH],
        teacher=[limited, designs.advice("endmodul is no keyword"), FIX],
        learner_code=[designs.WRONG_EDGE, designs.GOOD],
    )
    result, server = play(simulator, script)
    assert result.state == "success"
    assert [step.status.value for step in result.steps] == ["syntax_error", "fail", "pass"]
    assert result.calls == 6
    assert len(server.requests) == 8, "two of them were answered 429"
    # The teacher got compiler text only, then the table around the first mismatch.
    seen = [r["messages"][1]["content"] for r in server.requests if roles_of(r) == "teacher"]
    assert "syntax error" in seen[0]
    assert "q_ref" in seen[-1]
    assert "first mismatches: q" in seen[-1]


def roles_of(request: dict[str, Any]) -> str:
    from planish_promptv.models.scripted import role_of

    return role_of(request["messages"][0]["content"])


def test_success_in_round_three(simulator: Any) -> None:
    script = designs.script(
        coder=designs.TYPO,
        bencher=designs.GOOD_BENCH,
        teacher=FIX,
        learner_code=[designs.WRONG_EDGE, designs.WRONG_STEP, designs.GOOD],
    )
    result, _ = play(simulator, script)
    assert (result.state, result.rounds, result.attempts) == ("success", 3, ("success",))


def test_restart_begins_with_fresh_code_and_bench(simulator: Any) -> None:
    script = designs.script(
        coder=[designs.WRONG_EDGE, designs.GOOD],
        bencher=designs.GOOD_BENCH,
        teacher=FIX,
        learner_code=[designs.WRONG_STEP, designs.NO_ENABLE, designs.TYPO],
    )
    result, server = play(simulator, script)
    assert result.attempts == ("exhausted", "success")
    assert roles(server).count("coder") == roles(server).count("bencher") == 2


@pytest.mark.parametrize(("mode", "most"), [("promptv", 33), ("coopetitive", 30), ("single_agent", 33)])
def test_worst_case_number_of_calls(simulator: Any, mode: str, most: int) -> None:
    """Both sides are repaired in every round of every attempt, and nothing ever passes."""
    codes = [designs.WRONG_STEP.replace("4'd2", f"4'd{n}") for n in range(2, 12)]
    benches = [designs.bench(after_reset=f"4'd{n}") for n in range(1, 12)]
    both = designs.advice("wrong step", "wrong reset value")
    answers: dict[str, Any] = {
        "coder": codes[9],
        "bencher": benches[9],
        "teacher": both,
        "prosecutor": both,
        "learner_code": codes[:9],
        "learner_bench": benches[:9],
    }
    script = designs.script(**answers)
    if mode == "single_agent":
        script = alone(answers)
    result, server = play(simulator, script, mode=mode)
    assert result.state == "exhausted"
    assert result.calls == len(server.requests) == most
    assert GenerationConfig(mode=mode, model="m").worst_case_calls == most
    assert result.code is not None, "the best candidate is kept"


def alone(answers: dict[str, Any]) -> dict[str, Any]:
    """The same answers for the single agent, told apart by what it is asked."""
    phrases = {
        "coder": r"Write the module `counter`",
        "bencher": r"Write the testbench",
        "teacher": r"Check your module",
        "learner_code": r"Correct the module",
        "learner_bench": r"Correct the testbench",
    }
    rules = []
    for role, phrase in phrases.items():
        (rule,) = designs.script(**{role: answers[role]})["rules"]  # type: ignore[misc]
        rules.append({"user": phrase, "replies": rule["replies"]})
    return {"rules": rules}


def test_stalled_attempts_restart_at_once(simulator: Any) -> None:
    script = designs.script(
        coder=designs.WRONG_EDGE, bencher=designs.GOOD_BENCH, teacher=FIX, learner_code=designs.WRONG_EDGE
    )
    result, _ = play(simulator, script)
    assert result.state == "stalled"
    assert result.attempts == ("stalled",) * 3
    assert result.calls == 3 * 4


def test_no_advice_means_no_learner_and_a_stall(simulator: Any) -> None:
    script = designs.script(coder=designs.WRONG_EDGE, bencher=designs.GOOD_BENCH, teacher=NOTHING)
    result, server = play(simulator, script, max_restarts=0)
    assert (result.state, result.calls) == ("stalled", 3)
    assert "learner_code" not in roles(server)


def test_wrong_bench_is_repaired_and_the_code_left_alone(simulator: Any) -> None:
    script = designs.script(
        coder=designs.GOOD,
        bencher=designs.WRONG_BENCH,
        teacher=designs.advice(testbench="the reference resets to 7"),
        learner_bench=designs.GOOD_BENCH,
    )
    result, server = play(simulator, script)
    assert (result.state, result.calls, result.code) == ("success", 4, designs.GOOD)
    assert "learner_code" not in roles(server)


def test_both_sides_wrong(simulator: Any) -> None:
    script = designs.script(
        coder=designs.WRONG_STEP,
        bencher=designs.WRONG_BENCH,
        teacher=designs.advice("step of 2", "resets to 7"),
        learner_code=designs.GOOD,
        learner_bench=designs.GOOD_BENCH,
    )
    result, _ = play(simulator, script)
    assert (result.state, result.calls) == ("success", 5)


def test_vacuous_bench_is_not_accepted(simulator: Any) -> None:
    script = designs.script(
        coder=designs.WRONG_STEP,
        bencher=designs.VACUOUS_BENCH,
        teacher=[designs.advice(testbench="it compares nothing"), designs.advice("step of 2")],
        learner_bench=designs.GOOD_BENCH,
        learner_code=designs.GOOD,
    )
    result, server = play(simulator, script)
    assert result.state == "success"
    assert [(s.status.value, s.vacuous) for s in result.steps] == [
        ("pass", True),
        ("fail", False),
        ("pass", False),
    ]
    teacher = next(r for r in server.requests if roles_of(r) == "teacher")
    assert "cannot be trusted" in teacher["messages"][1]["content"]


def test_format_errors(simulator: Any) -> None:
    script = designs.script(coder={"text": "I would rather not."}, bencher=designs.GOOD_BENCH)
    result, server = play(simulator, script, max_restarts=0)
    assert (result.state, result.format_errors, result.code) == ("format_error", 2, None)
    asked = [r["messages"] for r in server.requests if roles_of(r) == "coder"]
    assert len(asked) == 2, "asked once more"
    assert "no module named counter" in asked[1][1]["content"]
    assert len(asked[1]) == 2, "a repeated question is a fresh conversation too"


def test_empty_and_cut_replies_are_asked_again(simulator: Any) -> None:
    script = designs.script(
        coder=[{"finish_reason": "length", "code": designs.GOOD[:80]}, designs.GOOD],
        bencher=[{}, designs.GOOD_BENCH],
    )
    result, _ = play(simulator, script)
    assert (result.state, result.calls, result.format_errors) == ("success", 4, 2)


def test_learner_that_answers_nonsense_leaves_the_code(simulator: Any) -> None:
    script = designs.script(
        coder=designs.WRONG_EDGE, bencher=designs.GOOD_BENCH, teacher=FIX, learner_code={"text": "Done!"}
    )
    result, _ = play(simulator, script, max_restarts=0)
    assert (result.state, result.code) == ("stalled", designs.WRONG_EDGE)


@pytest.mark.parametrize("limit", [{"calls": 3}, {"tokens": 500}, {"seconds": 1e-9}])
def test_budget_is_a_state(simulator: Any, limit: dict[str, float]) -> None:
    script = designs.script(
        coder=designs.WRONG_EDGE,
        bencher=designs.GOOD_BENCH,
        teacher=FIX,
        learner_code=[designs.WRONG_STEP, designs.NO_ENABLE],
    )
    result, _ = play(simulator, script, budget=limit)
    assert result.state == "budget"
    assert next(iter(limit)) in result.detail
    assert result.calls <= 4


def test_cancelled_is_a_state_and_resuming_pays_nothing_twice(simulator: Any, tmp_path: Any) -> None:
    script = designs.script(
        coder=designs.WRONG_EDGE, bencher=designs.GOOD_BENCH, teacher=FIX, learner_code=designs.GOOD
    )

    async def cancelled(server: ScriptedServer) -> GenerationResult:
        cancel = asyncio.Event()
        config = GenerationConfig(base_url=server.url, model="m")

        class Watched:
            """Cancels after the drafts' simulation."""

            async def simulate(self, *args: Any) -> Any:
                cancel.set()
                return await simulator.simulate(*args)

            quality = simulator.quality

        return await generate(designs.TASK, config, simulator=Watched(), out=tmp_path, cancel=cancel)

    with ScriptedServer(Script.model_validate(script)) as server:
        assert asyncio.run(cancelled(server)).state == "cancelled"
        assert len(server.requests) == 2
        config = GenerationConfig(base_url=server.url, model="m")
        result = asyncio.run(generate(designs.TASK, config, simulator=simulator, out=tmp_path))
        assert (result.state, result.calls, len(server.requests)) == ("success", 4, 4)
    assert (tmp_path / "counter.sv").read_text() == designs.GOOD


def test_prosecutor_overrules_bad_advice(simulator: Any) -> None:
    script = designs.script(
        coder=designs.WRONG_STEP,
        bencher=designs.GOOD_BENCH,
        teacher=designs.advice(testbench="the bench expects the wrong step"),
        prosecutor=designs.advice("the step is 2, the description says 1"),
        learner_code=designs.GOOD,
    )
    result, server = play(simulator, script, mode="coopetitive")
    assert (result.state, result.calls) == ("success", 5)
    assert "learner_bench" not in roles(server), "the research agent's advice never reached a learner"
    prosecutor = next(r for r in server.requests if roles_of(r) == "prosecutor")
    assert "expects the wrong step" in prosecutor["messages"][1]["content"]
    learner = next(r for r in server.requests if roles_of(r) == "learner_code")
    assert "the step is 2" in learner["messages"][1]["content"]
    assert "expects the wrong step" not in learner["messages"][1]["content"]


def test_paper_strict_reviews_before_any_simulation(simulator: Any) -> None:
    script = designs.script(coder=designs.GOOD, bencher=designs.GOOD_BENCH, teacher=NOTHING)
    result, server = play(simulator, script, paper_strict=True)
    assert (result.state, result.calls, result.rounds) == ("success", 3, 1)
    teacher = next(r for r in server.requests if roles_of(r) == "teacher")
    assert "review by reading" in teacher["messages"][1]["content"]


def test_every_call_is_a_fresh_conversation_of_two_messages(simulator: Any) -> None:
    script = designs.script(
        coder=designs.TYPO,
        bencher=designs.GOOD_BENCH,
        teacher=FIX,
        learner_code=[designs.WRONG_EDGE, designs.GOOD],
    )
    _, server = play(simulator, script)
    for request in server.requests:
        assert [m["role"] for m in request["messages"]] == ["system", "user"]
        assert designs.TASK.description in request["messages"][1]["content"], (
            "the description is always repeated"
        )
    seeds = [request["seed"] for request in server.requests]
    assert len(set(seeds)) == len(seeds)


def test_single_agent_keeps_one_growing_conversation(simulator: Any) -> None:
    script = alone(
        {
            "coder": designs.WRONG_EDGE,
            "bencher": designs.GOOD_BENCH,
            "teacher": FIX,
            "learner_code": designs.GOOD,
            "learner_bench": designs.GOOD_BENCH,
        }
    )
    result, server = play(simulator, script, mode="single_agent")
    assert result.state == "success"
    assert [len(request["messages"]) for request in server.requests] == [2, 4, 6, 8]
    assert {request["messages"][0]["content"] for request in server.requests} == {
        server.requests[0]["messages"][0]["content"]
    }


def test_provided_bench_is_never_rewritten_and_the_reference_never_shown(simulator: Any) -> None:
    script = designs.script(
        coder=designs.WRONG_STEP,
        teacher=designs.advice("step of 2", "rewrite the bench so that it passes"),
        learner_code=designs.GOOD,
    )
    result, server = play(simulator, script, bench_source="provided")
    assert (result.state, result.calls) == ("success", 3)
    assert set(roles(server)) == {"coder", "teacher", "learner_code"}
    assert GenerationConfig(bench_source="provided").worst_case_calls == 21
    for request in server.requests:
        assert "4'd1;\nendmodule" not in request["messages"][1]["content"].replace("  ", "")
