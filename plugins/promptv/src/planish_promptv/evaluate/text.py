"""Figures of an evaluation as rows of text, for the terminal and the report."""

from __future__ import annotations

from collections.abc import Mapping

from planish_promptv.evaluate.degeneration import Share
from planish_promptv.evaluate.passk import PassAtK
from planish_promptv.evaluate.summary import EvalReport

NOT_MEASURED = "not measured"


def percent(figure: PassAtK) -> str:
    """A pass@k with its interval."""
    return f"{100 * figure.value:.1f} % [{100 * figure.low:.1f}, {100 * figure.high:.1f}]"


def money(cost: float | None) -> str:
    """US dollars, or that no price is known."""
    return "no price known" if cost is None else f"${cost:,.4f}" if cost < 1 else f"${cost:,.2f}"


def shares(by_round: Mapping[int, Share]) -> str:
    """Shares by round in one cell."""
    return "; ".join(f"round {number}: {share}" for number, share in by_round.items()) or NOT_MEASURED


def rows(report: EvalReport) -> list[tuple[str, str]]:
    """(name, figure) of one evaluation: nothing that was not measured."""
    n = max(report.samples, 1)
    found = [
        ("benchmark", report.benchmark),
        ("mode", report.mode),
        ("bench the loop saw", report.bench_source),
        ("model", report.model),
        (
            "tasks, samples",
            f"{len(report.tasks)}, {report.samples}"
            + (f" ({report.missing} to come)" if report.missing else ""),
        ),
    ]
    found += [(f"functional pass@{f.k}", percent(f)) for f in report.functional]
    found += [(f"syntax pass@{f.k}", percent(f)) for f in report.syntax]
    found += [
        ("accepted by the loop", f"{report.accepted} of {report.samples}"),
        ("passed by the benchmark", f"{report.passed} of {report.samples}"),
        ("calls", f"{report.calls:,} ({report.calls / n:.1f} a sample)"),
        (
            "tokens",
            f"{report.prompt_tokens:,} in, {report.completion_tokens:,} out"
            + (", partly estimated" if report.estimated else ""),
        ),
        ("cost", money(report.cost)),
        ("time", f"{report.wall_s / n:.2f} s a sample"),
        ("how the loop ended", ", ".join(f"{name} {count}" for name, count in report.states.items())),
        ("verdicts", ", ".join(f"{name} {count}" for name, count in report.verdicts.items())),
    ]
    measured = report.degeneration
    found += [
        ("retained error", str(measured.retained_error)),
        ("no-op repairs", str(measured.no_op)),
        ("regression", shares(measured.regression)),
        ("review recall", shares(measured.recall)),
        ("review false alarms", shares(measured.false_alarm)),
        ("review accuracy", shares(measured.accuracy)),
    ]
    found += [(f"excluded {task}", reason) for task, reason in report.excluded.items()]
    return found


def report_text(report: EvalReport) -> str:
    """The rows, aligned."""
    found = rows(report)
    width = max(len(name) for name, _ in found)
    return "\n".join(f"{name:{width}}  {value}" for name, value in found)
