"""``planish verilog golden | mutants | doctor``: the harness without any model."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from planish.errors import PlanishError

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Source = Annotated[
    str,
    typer.Argument(
        help="verilogeval-v2, verilogeval-v1-human, verilogeval-v1-machine, rtllm-v2, rtllm-v1.1, or a folder."
    ),
]
Workers = Annotated[int | None, typer.Option(help="Simulations at one time; the cores by default.")]
Errata = Annotated[bool, typer.Option(help="Apply the known corrections of the benchmarks.")]
Strict = Annotated[bool, typer.Option(help="A bench that prints TIMEOUT has failed, as upstream counts it.")]
Unsandboxed = Annotated[
    bool, typer.Option("--allow-unsandboxed", help="Accept resource limits alone where no sandbox works.")
]
Split = Annotated[str | None, typer.Option(help="spec-to-rtl or code-complete (VerilogEval v2).")]


def mount(app: typer.Typer) -> None:
    """Add the harness's commands to a CLI group."""
    for command in (golden, mutants, doctor):
        app.command()(command)


def golden(
    source: Source,
    workers: Workers = None,
    errata: Errata = False,
    strict_timeout: Strict = False,
    allow_unsandboxed: Unsandboxed = False,
    split: Split = None,
    as_json: Json = False,
) -> None:
    """The verdict of every reference design against its own bench, beside what is known; exit code 1 if any differs."""
    from planish_promptv.harness import Simulator, load_benchmark
    from planish_promptv.harness import golden as acceptance

    tasks = load_benchmark(source, errata=errata, split=split)
    with _simulator(Simulator, workers, allow_unsandboxed, strict_timeout) as simulator:
        report = acceptance.run(tasks, simulator)
        data = {
            "benchmark": source,
            "tools": simulator.tools,
            "sandbox": simulator.tier,
            "workers": simulator.slots,
            "seconds": round(report.seconds, 2),
            "verdicts": report.counts,
            "refused_by_guard": report.refused,
            "differ_from_record": [outcome.task.id for outcome in report.disagreements],
            "excluded": {task.id: task.excluded for task in tasks if task.excluded},
            "patched": {task.id: list(task.notes) for task in tasks if _patched(task)},
            "tasks": [_row(outcome) for outcome in report.outcomes],
        }
    if as_json:
        typer.echo(json.dumps(data, indent=1))
    else:
        _print_golden(data)
    if report.disagreements:
        raise typer.Exit(1)


def mutants(
    source: Source,
    workers: Workers = None,
    limit: Annotated[int, typer.Option(min=1, help="Mutants a design at most.")] = 8,
    prove: Annotated[bool, typer.Option(help="Ask Yosys about the mutants that the bench accepts.")] = False,
    cpu_seconds: Annotated[int, typer.Option(min=1, help="CPU seconds of one tool call.")] = 20,
    allow_unsandboxed: Unsandboxed = False,
    as_json: Json = False,
) -> None:
    """How many first-order mutants of the reference designs the benches catch."""
    from planish_promptv.harness import Limits, Simulator, load_benchmark
    from planish_promptv.harness.mutants import score

    tasks = load_benchmark(source)
    limits = Limits(cpu_s=cpu_seconds, memory_mb=1024)
    with _simulator(Simulator, workers, allow_unsandboxed, False, limits) as simulator:
        result = score(tasks, simulator, limit=limit, prove=prove)
    data = {
        "benchmark": source,
        "mutants": len(result.counted),
        "never_ran": len(result.judged) - len(result.counted),
        "caught": result.caught,
        "caught_share": result.share,
        "survivors": {kind: list(pair) for kind, pair in result.survivors().items()},
    }
    if prove:
        verdicts = [one.proof.verdict for one in result.judged if one.proof]
        data |= {
            "proofs": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
            "caught_or_proven_different": result.found,
            "caught_or_proven_share": result.share_with_proof,
        }
    if as_json:
        typer.echo(json.dumps(data, indent=1))
        return
    typer.echo(f"{source}: {result.caught} of {len(result.counted)} mutants caught ({result.share:.1%})")
    for kind, (alive, total) in result.survivors().items():
        typer.echo(f"  {kind:10} {alive} of {total} survive")
    if prove:
        typer.echo(
            f"with equivalence: {result.found} ({result.share_with_proof:.1%}); proofs {data['proofs']}"
        )


def doctor(as_json: Json = False) -> None:
    """Tool versions, the sandbox that works here, a self-test, and what is missing; exit code 1 if it cannot run."""
    from planish_promptv.harness.diagnose import diagnose

    found = diagnose()
    typer.echo(json.dumps(found.as_dict(), indent=1) if as_json else found.text())
    if found.problems:
        raise typer.Exit(1)


def _simulator(
    kind: Any, workers: int | None, allow_unsandboxed: bool, strict: bool, limits: Any = None
) -> Any:
    if workers is not None and workers < 1:
        raise PlanishError(f"workers = {workers} is not at least 1")
    simulator = kind(slots=workers, allow_unsandboxed=allow_unsandboxed, strict_timeout=strict, limits=limits)
    if "iverilog" not in simulator.tools:
        simulator.close()
        from planish.errors import MissingRequirement
        from planish_promptv.harness.tools import PROGRAMS

        raise MissingRequirement(f"iverilog is not installed: {PROGRAMS['iverilog']}")
    return simulator


def _patched(task: Any) -> bool:
    return any(note.startswith("errata") for note in task.notes)


def _row(outcome: Any) -> dict[str, Any]:
    from planish_promptv.harness.golden import label

    result = outcome.result
    reason = next((d.message for d in result.diagnostics if d.severity == "error"), "")
    return {
        "id": outcome.task.id,
        "verdict": label(outcome),
        "known": outcome.known,
        "agrees": outcome.agrees,
        "mismatches": result.mismatches,
        "samples": result.samples,
        "reason": reason,
        "cpu_s": round(result.cpu_s, 3),
        "peak_mb": round(result.peak_mb, 1),
    }


def _print_golden(data: dict[str, Any]) -> None:
    for row in data["tasks"]:
        if row["verdict"] != "pass":
            typer.echo(f"{row['id']:28} {row['verdict']:16} {row['reason']}")
    counts = ", ".join(f"{number} {verdict}" for verdict, number in data["verdicts"].items())
    typer.echo(f"{len(data['tasks'])} references of {data['benchmark']}: {counts}")
    for name, reason in data["excluded"].items():
        typer.echo(f"excluded {name}: {reason}")
    for name, notes in data["patched"].items():
        typer.echo(f"patched {name}: {'; '.join(notes)}")
    differ = ", ".join(data["differ_from_record"]) or "none"
    typer.echo(
        f"{data['seconds']} s with {data['workers']} workers in {data['sandbox']}, "
        f"Icarus Verilog {data['tools']['iverilog']}; differ from the record: {differ}"
    )
