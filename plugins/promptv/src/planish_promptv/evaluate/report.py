"""The HTML report of evaluations: one file, no script; figures, rounds of every sample, failing waveforms."""

from __future__ import annotations

import contextlib
import html
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from planish.charts import bars
from planish.errors import RunError
from planish.report import STYLE
from planish_promptv.agents.result import Step
from planish_promptv.evaluate import waves
from planish_promptv.evaluate.folder import RunFolder, Scored, Settings
from planish_promptv.evaluate.summary import EvalReport, summarise
from planish_promptv.evaluate.text import percent, rows

OWN_STYLE = """
.grid td{padding:.15rem .5rem .15rem 0}.dots i{display:inline-block;width:.8em;height:.8em;margin-right:2px;border-radius:2px}
.dots i.pass{background:#2e8b57}.dots i.fail{background:#d9822b}.dots i.syntax{background:#c0392b}.dots i.none{background:var(--line)}
.dots i.pass.own{outline:1px solid var(--ink)}
"""
SHOWN = 1
"""Failing samples of a task whose code and waveform are shown."""


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation as it stands."""

    folder: RunFolder
    settings: Settings
    samples: list[Scored]
    figures: EvalReport

    @classmethod
    def read(cls, root: Path) -> Run:
        """Read a folder.

        Raises:
            RunError: it holds no evaluation.
        """
        folder = RunFolder(root)
        settings = folder.settings()
        samples = folder.finished()
        return cls(folder, settings, samples, summarise(settings, samples))


def write_report(roots: Sequence[Path], path: Path | None = None) -> Path:
    """Write the report of the evaluations in ``roots``, side by side; whole or not at all.

    Args:
        path: the file; ``report.html`` in the first folder by default.

    Raises:
        RunError: a folder holds no evaluation, or the file cannot be written.
    """
    runs = [Run.read(root) for root in roots]
    path = path or runs[0].folder.report
    title = ", ".join(dict.fromkeys(run.settings.benchmark for run in runs))
    body = [
        f"<h1>{html.escape(title)}</h1>",
        _figures(runs),
        _charts(runs),
        *(_tasks(run) for run in runs),
        *(_settings(run) for run in runs),
    ]
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>planish verilog: {html.escape(title)}</title><style>{STYLE}{OWN_STYLE}{waves.STYLE}</style>"
        f"<body>{''.join(body)}<p class=note>Written by planish-promptv, {written}.</p></body></html>\n"
    )
    temporary = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return path


def _figures(runs: Sequence[Run]) -> str:
    columns = [dict(rows(run.figures)) for run in runs]
    names = list(dict.fromkeys(name for column in columns for name in column))
    lines = "".join(
        f"<tr><th>{html.escape(name)}</th>"
        + "".join(f"<td>{html.escape(column.get(name, ''))}</td>" for column in columns)
        + "</tr>"
        for name in names
    )
    notes = [
        "pass@k: unbiased estimate from n samples, in brackets its 95 % interval; "
        + "; ".join(dict.fromkeys(f.how for run in runs for f in run.figures.functional)),
        "functional: the benchmark's own bench, in a process of its own; syntax: the design compiles with that bench",
        "retained error: repairs after which stage, status and messages are what they were; no-op: after which the text is; "
        "regression: after which an earlier stage fails",
        "review recall: reviews of wrong code that saw an error in it; accuracy: reviews that were right either way",
    ]
    if len({run.settings.config.bench_source for run in runs}) > 1:
        notes.append("loops that saw the benchmark's bench and loops that did not are different experiments")
    listed = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    return f"<h2>Figures</h2><div class=wide><table>{lines}</table></div><ul class=note>{listed}</ul>"


def _label(run: Run) -> str:
    return f"{run.settings.config.mode}, {run.settings.benchmark}"


def _charts(runs: Sequence[Run]) -> str:
    passed = [
        (f"{_label(run)}: pass@{f.k}", 100 * f.value, percent(f))
        for run in runs
        for f in run.figures.functional
    ]
    per = [(run, max(run.figures.samples, 1)) for run in runs]
    calls = [(_label(run), run.figures.calls / n, f"{run.figures.calls / n:.1f}") for run, n in per]
    tokens = [
        (_label(run), t / n, f"{t / n:,.0f}")
        for run, n in per
        for t in [run.figures.prompt_tokens + run.figures.completion_tokens]
    ]
    return (
        "<h2>Side by side</h2>"
        + bars("functional pass@k (%)", passed, limit=100.0)
        + bars("model calls a sample", calls)
        + bars("tokens a sample", tokens)
    )


def _tasks(run: Run) -> str:
    by_task: dict[str, list[Scored]] = {}
    for scored in sorted(run.samples, key=lambda s: (run.settings.tasks.index(s.task), s.sample)):
        by_task.setdefault(scored.task, []).append(scored)
    lines = []
    for figures in run.figures.tasks:
        dots = "".join(_dot(scored) for scored in by_task[figures.task])
        lines.append(
            f"<tr><td>{html.escape(figures.task)}</td><td class=dots>{dots}</td>"
            f"<td>{figures.passed} of {figures.samples}</td><td>{figures.calls:.1f}</td><td>{figures.tokens:,.0f}</td></tr>"
        )
    details = "".join(_task(name, samples) for name, samples in by_task.items())
    return (
        f"<h2>Tasks: {html.escape(_label(run))}</h2><div class=wide><table class=grid>"
        f"<tr><th>task</th><th>samples</th><th>passed</th><th>calls</th><th>tokens</th></tr>{''.join(lines)}</table></div>"
        "<p class=note>Green: passed by the benchmark, outlined where the loop took it for right too; orange: compiled, failed; "
        f"red: did not compile; grey: no code.</p>{details}"
    )


def _dot(scored: Scored) -> str:
    kind = "none"
    if scored.sim is not None:
        kind = "pass" if scored.passed else "fail" if scored.compiled else "syntax"
    own = " own" if scored.result.succeeded else ""
    status = scored.sim.status.value if scored.sim else "no code"
    told = (
        f"sample {scored.sample}: loop {scored.result.state}, benchmark {status}, {scored.result.calls} calls"
    )
    return f'<i class="{kind}{own}" title="{html.escape(told)}"></i>'


def _task(name: str, samples: Sequence[Scored]) -> str:
    failing = [scored for scored in samples if scored.sim is not None and not scored.passed]
    shown = "".join(_failure(scored) for scored in failing[:SHOWN])
    table = "".join(_sample(scored) for scored in samples)
    head = "<tr><th>sample</th><th>rounds (attempt.round: what the simulator said)</th><th>loop</th><th>benchmark</th></tr>"
    return (
        f"<details><summary>{html.escape(name)}: rounds of every sample"
        f"{', and a failing waveform' if failing else ''}</summary>"
        f"<div class=wide><table>{head}{table}</table></div>{shown}</details>"
    )


def _sample(scored: Scored) -> str:
    steps = "<br>".join(html.escape(_step(step)) for step in scored.result.steps)
    status = "no code"
    if scored.sim is not None:
        status = scored.sim.status.value
        if scored.sim.samples:
            status += f", {scored.sim.mismatches} of {scored.sim.samples} wrong"
    detail = f" ({scored.result.detail})" if scored.result.detail else ""
    return (
        f"<tr><td>{scored.sample}</td><td>{steps}</td><td>{html.escape(scored.result.state + detail)}</td>"
        f"<td>{html.escape(status)}</td></tr>"
    )


def _step(step: Step) -> str:
    text = f"{step.attempt}.{step.round}: "
    if step.reviewed:
        text += f"review says {step.reviewed}, repaired {' and '.join(step.repaired) or 'nothing'}; "
    text += f"{step.stage.value} {step.status.value}"
    if step.samples:
        text += f", {step.mismatches} of {step.samples} wrong"
    return text + (", but the bench cannot fail" if step.vacuous else "")


def _failure(scored: Scored) -> str:
    assert scored.sim is not None
    parts = [
        f"<p>Sample {scored.sample} under the benchmark's bench: {html.escape(scored.sim.status.value)}</p>"
    ]
    messages = [f"{d.file}:{d.line}: {d.severity}: {d.message}" for d in scored.sim.diagnostics[:20]]
    if messages:
        parts.append(f"<pre>{html.escape(chr(10).join(messages))}</pre>")
    if scored.sim.first_mismatch is not None:
        parts.append(f"<div class=wide>{waves.waveform(scored.sim.first_mismatch)}</div>")
    parts.append(f"<pre>{html.escape((scored.result.code or '')[:20000])}</pre>")
    return "".join(parts)


def _settings(run: Run) -> str:
    settings = run.settings.model_dump(mode="json", exclude={"tasks"})
    text = html.escape(json.dumps(settings, indent=1, ensure_ascii=False))
    return f"<details><summary>Settings of {html.escape(_label(run))}</summary><pre>{text}</pre></details>"
