"""VerilogEval v1 and v2, RTLLM v1.1 and v2.0: repacked files, or a folder in the layout of its upstream repository."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from planish.errors import PlanishError
from planish_promptv.harness import errata as overlay
from planish_promptv.harness import verilog
from planish_promptv.types import Bench, Status, Task

FILES = {
    "verilogeval-v2": "verilogeval_v2.jsonl.gz",
    "verilogeval-v1-human": "verilogeval_v1_human.jsonl.gz",
    "verilogeval-v1-machine": "verilogeval_v1_machine.jsonl.gz",
    "rtllm-v2": "rtllm_v2.jsonl.gz",
    "rtllm-v1.1": "rtllm_v1_1.jsonl.gz",
}
BENCHMARKS = tuple(FILES)

# How the repacked files call the verdicts that were measured for the references.
_GOLDEN = {
    "pass": Status.PASS,
    "pass_with_timeout_marker": Status.PASS,
    "fail": Status.FAIL,
    "compile": Status.ELAB_ERROR,
    "compile_error": Status.ELAB_ERROR,
}
# VerilogEval v1 carries no verdicts: all references pass with Icarus 11 and 12 but the typed enum cast with 11.
_ALL_PASS = {11: Status.PASS, 12: Status.PASS, 13: Status.ELAB_ERROR}
_V1_GOLDEN = {"review2015_fsm": {11: Status.UNSUPPORTED, 12: Status.PASS, 13: Status.ELAB_ERROR}}


class BenchmarkError(PlanishError):
    """A benchmark that is not known, not there, or not complete."""


def load_benchmark(
    source: str | Path, *, split: str | None = None, errata: bool = False, data: Path | None = None
) -> list[Task]:
    """The tasks of a benchmark, in its own order.

    Args:
        source: one of `BENCHMARKS`; a ``.jsonl`` or ``.jsonl.gz`` file of their formats; or a folder: of VerilogEval v2
            (``ProbNNN_name_prompt.txt``, ``_ref.sv``, ``_test.sv``), or of RTLLM (``design_description.txt``,
            ``testbench.v`` and the reference in a folder a design).
        split: ``code-complete`` takes the other prompts of VerilogEval v2.
        errata: apply the corrections that ship with planish, keyed by the digest of the bench.
        data: where the named files lie; ``PLANISH_SHARED``/data/verilog, or ../shared/data/verilog, by default.

    Raises:
        BenchmarkError: nothing is there, it is of no known layout, files are missing, or a task names no top module.
    """
    if split not in (None, "spec-to-rtl", "code-complete"):
        raise BenchmarkError(f"split = {split!r} is not one of spec-to-rtl, code-complete")
    path = _locate(str(source), data)
    tasks = _folder(path) if path.is_dir() else list(_records(path, split == "code-complete"))
    if not tasks:
        raise BenchmarkError(f"benchmark {source}: no tasks found")
    for task in tasks:
        if not task.top_name:
            raise BenchmarkError(
                f"benchmark {source}: task {task.id} names no top module, and none can be told"
            )
    return [overlay.apply(task) for task in tasks] if errata else tasks


def _locate(source: str, data: Path | None) -> Path:
    path = Path(source)
    if source not in FILES:
        if path.exists():
            return path
        raise BenchmarkError(
            f"benchmark {source!r} is neither a file nor a folder nor one of {', '.join(FILES)}"
        )
    tried = [data] if data else []
    if not data:
        if shared := os.environ.get("PLANISH_SHARED"):
            tried.append(Path(shared) / "data" / "verilog")
        tried.append(Path.cwd() / "../shared/data/verilog")
        tried += [parent / "shared/data/verilog" for parent in Path(__file__).resolve().parents[5:8]]
    for folder in tried:
        if (folder / FILES[source]).is_file():
            return folder / FILES[source]
    raise BenchmarkError(
        f"benchmark {source}: {FILES[source]} is not in {', '.join(str(folder) for folder in tried)} "
        "(PLANISH_SHARED names the folder that holds data/verilog)"
    )


def _records(path: Path, complete: bool) -> Iterator[Task]:
    name = {file: name for name, file in FILES.items()}.get(path.name, path.stem.removesuffix(".jsonl"))
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as stream:
            for number, line in enumerate(stream, 1):
                try:
                    record = json.loads(line)
                    yield _layout(record)(record, name, complete)
                except (ValueError, KeyError, TypeError, AttributeError) as error:
                    raise BenchmarkError(
                        f"benchmark {path.name}, line {number}: {type(error).__name__}: {error}"
                    ) from None
    except (OSError, EOFError) as error:
        raise BenchmarkError(f"benchmark {path.name}: cannot be read ({error})") from None


def _layout(record: dict[str, Any]) -> Callable[[dict[str, Any], str, bool], Task]:
    for key, make in (("canonical_solution", _v1), ("prompt_spec_to_rtl", _v2), ("testbench", _rtllm)):
        if key in record:
            return make
    raise KeyError("none of canonical_solution, prompt_spec_to_rtl, testbench")


def _v2(record: dict[str, Any], benchmark: str, complete: bool) -> Task:
    """VerilogEval v2: top ``TopModule``, reference ``RefModule`` in a file of its own."""
    reference = (complete and record.get("ref_code_complete")) or record["ref"]
    test = (complete and record.get("test_code_complete")) or record["test"]
    return Task(
        id=record["id"],
        description=record["prompt_code_complete" if complete else "prompt_spec_to_rtl"],
        header=record.get("ifc_code_complete") if complete else None,
        ports=verilog.ports(reference, "RefModule"),
        top_name="TopModule",
        provided_testbench=Bench(
            text=test, verdict="mismatches", reference=reference, reference_top="RefModule"
        ),
        reference=verilog.rename(reference, {"RefModule": "TopModule"}),
        benchmark=benchmark,
        golden={} if complete else _golden(record),
        golden_timeout=record.get("golden_iverilog11") == "pass_with_timeout_marker",
    )


def _v1(record: dict[str, Any], benchmark: str, _complete: bool) -> Task:
    """VerilogEval v1: header as prompt, body as solution, the reference inside the test file."""
    header = record["prompt"]
    return Task(
        id=record["task_id"],
        description=record.get("detail_description") or record.get("description", ""),
        header=header,
        ports=verilog.ports(header + "\nendmodule", "top_module"),
        top_name="top_module",
        provided_testbench=Bench(
            text=record["test"],
            verdict="mismatches",
            reference_top="reference_module",
            design_first=False,
        ),
        reference=header + "\n" + record["canonical_solution"],
        benchmark=benchmark,
        golden=_golden(record) or _V1_GOLDEN.get(record["task_id"], _ALL_PASS),
    )


def _rtllm(record: dict[str, Any], benchmark: str, _complete: bool) -> Task:
    """RTLLM: a bench with a pass banner; references are often called ``verified_NAME``."""
    dut = record["dut_module"]
    reference = "\n".join(record["reference"].values())
    return Task(
        id=record["name"],
        description=record["description"],
        ports=verilog.ports(reference, verilog.top_of(reference)),
        top_name=dut,
        provided_testbench=Bench(
            text=record["testbench"],
            top=verilog.top_of(record["testbench"]),
            verdict="banner",
            aux_files=record.get("aux_files", {}),
        ),
        reference=_as_top(reference, dut),
        benchmark=benchmark,
        golden=_golden(record),
        notes=_names_differ(record),
    )


def _as_top(reference: str, dut: str) -> str:
    """The reference with its top called ``dut``."""
    names = {module.name for module in verilog.modules(reference)}
    return reference if dut in names else verilog.rename(reference, {verilog.top_of(reference): dut})


def _names_differ(record: dict[str, Any]) -> tuple[str, ...]:
    asked, bench = record.get("description_module"), record["dut_module"]
    return (f"the description asks for {asked}, the bench instantiates {bench}",) if asked != bench else ()


def _golden(record: dict[str, Any]) -> dict[int, Status]:
    """Known verdicts by Icarus major version; 13 rejects every bench of VerilogEval (a signal used before its declaration)."""
    known = {
        version: _GOLDEN[record[key]]
        for version in (11, 12)
        if (key := f"golden_iverilog{version}") in record
    }
    return known | {13: Status.ELAB_ERROR} if known and "prompt_spec_to_rtl" in record else known


def _folder(folder: Path) -> list[Task]:
    prompts = sorted(folder.glob("*_prompt.txt"))
    if prompts:
        return [_v2_files(path) for path in prompts]
    descriptions = sorted(folder.rglob("design_description.txt"))
    if descriptions:
        return [_rtllm_files(path.parent, folder) for path in descriptions]
    lists = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.gz")])
    if lists:
        return [task for path in lists for task in _records(path, complete=False)]
    raise BenchmarkError(
        f"benchmark {folder}: no known layout (VerilogEval v2: *_prompt.txt; RTLLM: design_description.txt; or *.jsonl)"
    )


def _v2_files(prompt: Path) -> Task:
    stem = prompt.name.removesuffix("_prompt.txt")
    return _v2(
        {
            "id": stem,
            "prompt_spec_to_rtl": _read(prompt),
            "ref": _read(prompt.with_name(f"{stem}_ref.sv")),
            "test": _read(prompt.with_name(f"{stem}_test.sv")),
        },
        prompt.parent.name,
        False,
    )


def _rtllm_files(design: Path, root: Path) -> Task:
    """One RTLLM design: what the bench instantiates and neither file defines is the design to be made."""
    testbench = _read(design / "testbench.v")
    references = [
        path for path in sorted(design.glob("*.v")) if path.name != "testbench.v" and path.is_file()
    ]
    verified = [path for path in references if path.name.startswith("verified_")] or references
    if not verified:
        raise BenchmarkError(
            f"benchmark {root}: {design.relative_to(root)} holds no reference (verified_*.v)"
        )
    benches = verilog.modules(testbench)
    inside = {module.name for module in benches}
    used = [name for module in benches for name, _ in verilog.instances(module) if name not in inside]
    description = _read(design / "design_description.txt")
    asked = re.search(r"Module name:\s*([A-Za-z_]\w*)", description)
    record = {
        "name": design.name,
        "description": description,
        "testbench": testbench,
        "reference": {path.name: _read(path) for path in verified},
        "dut_module": used[0] if used else "",
        "description_module": asked.group(1) if asked else (used[0] if used else ""),
        "aux_files": {
            path.name: _read(path)
            for path in sorted(design.iterdir())
            if path.is_file()
            and path.suffix in (".txt", ".dat", ".hex", ".mem")
            and path.name != "design_description.txt"
        },
    }
    return _rtllm(record, root.name, False)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        raise BenchmarkError(f"benchmark {path.parent}: {path.name} is missing") from None
    except OSError as error:
        raise BenchmarkError(
            f"benchmark {path.parent}: {path.name} cannot be read ({error.strerror})"
        ) from None
