"""pass@k against a model whose success probability is known, over real HTTP; and the three modes side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from promptv_designs import Remembering, mutable_tasks

from planish_promptv.config import MODES, EvaluationConfig
from planish_promptv.evaluate.run import evaluate_sync
from planish_promptv.evaluate.summary import EvalReport
from planish_promptv.models.mutating import MutatingModel, Skill
from planish_promptv.models.server import ScriptedServer

SKILL = Skill(right_first=0.2, sees=0.3, overrules=0.5, tires=0.5)


def run(
    simulator: Any, out: Path, mode: str, skill: Skill = SKILL, samples: int = 20, **options: Any
) -> EvalReport:
    tasks, mutants = mutable_tasks()
    with ScriptedServer(MutatingModel(tasks, mutants, skill)) as server:
        config = EvaluationConfig(
            base_url=server.url,
            model="mutating",
            mode=mode,
            bench_source="provided",
            samples=samples,
            **options,
        )
        return evaluate_sync("counters", config, out, tasks=tasks, simulator=simulator)


@pytest.fixture(scope="module")
def reports(simulator: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, EvalReport]:
    """The three modes, one attempt a sample."""
    remembering = Remembering(simulator)
    return {
        mode: run(remembering, tmp_path_factory.mktemp(mode), mode, max_restarts=0, k=(1, 5, 10))
        for mode in MODES
    }


@pytest.mark.parametrize("mode", MODES)
def test_pass_at_k_holds_the_closed_form_within_its_interval(
    reports: dict[str, EvalReport], mode: str
) -> None:
    report = reports[mode]
    rounds = 2 if mode == "coopetitive" else 3
    success = SKILL.success(mode, rounds, attempts=1)
    assert [figure.k for figure in report.functional] == [1, 5, 10]
    for figure in report.functional:
        expected = 1 - (1 - success) ** figure.k
        assert figure.low <= expected <= figure.high, (mode, figure, expected)
        assert figure.high - figure.low < (0.45 if figure.k == 1 else 0.6), "an interval that says something"
    assert report.complete
    assert report.passed == report.accepted, "the loop saw the bench that scores"


def test_modes_show_the_expected_order(reports: dict[str, EvalReport]) -> None:
    single, promptv, coopetitive = (reports[m].pass_at[1] for m in ("single_agent", "promptv", "coopetitive"))
    assert single < promptv < coopetitive


def test_degeneration_is_measured_in_all_modes(reports: dict[str, EvalReport]) -> None:
    """The mutating model always exchanges one mistake for another, so nothing is a no-op and no stage is lost."""
    for report in reports.values():
        measured = report.degeneration
        assert measured.no_op.of > 20
        assert measured.no_op.count == 0
        assert measured.retained_error.of == measured.no_op.of
        assert all(share.count == 0 for share in measured.regression.values())
        assert measured.recall[1].value == 1.0


def test_success_by_round_with_two_seeded_bugs(simulator: Any, tmp_path: Path) -> None:
    """Every review sees one bug and mends it: drafts with two bugs succeed in round two and never earlier."""
    skill = Skill(right_first=0.0, bugs=2, sees=1.0)
    report = run(Remembering(simulator), tmp_path, "promptv", skill, samples=4, k=(1,))
    assert report.pass_at[1] == 1.0
    assert report.calls == report.samples * (1 + 2 * 2)


@pytest.mark.slow
def test_benchmark_of_the_modes(simulator: Any, verilog_data: Path) -> None:
    from planish_promptv.evaluate.rehearsal import rows

    found = list(rows(quick=True))
    assert [row.metric.split(",")[0] for row in found][2::3] == ["model calls a sample"] * 3
    assert all(0 < row.value <= row.peer_value for row in found[2::3]), "calls stay below the worst case"
    assert all(row.peer == "closed form" and 0 <= row.value <= 100 for row in found if row.unit == "%")
