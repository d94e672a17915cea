"""What the listing commands print: first as data for ``--json``, then as text."""

from __future__ import annotations

import json
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Any

from planish.errors import RunError
from planish.method import Benchmark, Method
from planish.registry import host


def plugins() -> dict[str, Any]:
    """Every plugin with its records, or with the reason why it is broken."""
    return {
        "plugins": [
            {
                "name": plugin.name,
                "distribution": plugin.distribution,
                "version": plugin.version,
                "hooks": plugin.hooks,
                "offers": [
                    {"name": record.name, "kind": _kind(record), "summary": record.summary}
                    for record in plugin.records
                ],
                "broken": plugin.broken or None,
            }
            for plugin in host().plugins
        ]
    }


def plugins_text(data: dict[str, Any]) -> str:
    lines = []
    for plugin in data["plugins"]:
        state = f"  BROKEN: {plugin['broken']}" if plugin["broken"] else ""
        lines.append(f"{plugin['distribution']} {plugin['version']}{state}")
        for offer in plugin["offers"]:
            lines.append(f"  {offer['kind']:<10} {offer['name']:<18} {offer['summary']}")
    return "\n".join(lines)


def _kind(record: Any) -> str:
    return record.kind if isinstance(record, Method) else type(record).__name__.lower()


def method(name: str) -> dict[str, Any]:
    """A method's record and the schema of its options."""
    from planish.method import resolve

    owned = host().method(name)
    record = owned.record
    return {
        **asdict(record),
        "distribution": owned.distribution,
        "version": owned.version,
        "missing": [r.hint for r in record.requires if r.missing()],
        "options": resolve(record.config).model_json_schema(),
    }


def method_text(data: dict[str, Any]) -> str:
    goes = f"{' or '.join(data['accepts'])} -> {data['yields'] or 'the same kind'}"
    lines = [
        f"{data['name']} ({data['kind']}, {data['distribution']} {data['version']})",
        data["summary"],
        f"from   {goes}",
    ]
    lines += [f"paper  {data['paper']}"] if data["paper"] else []
    lines += [f"needs  {', '.join(data['needs'])}"] if data["needs"] else []
    lines += [f"missing: {hint}" for hint in data["missing"]]
    lines.append("options")
    for name, field in data["options"].get("properties", {}).items():
        default = json.dumps(field["default"]) if "default" in field else "required"
        lines.append(f"  {name:<16} {_type(field):<28} {default:<14} {field.get('description', '')}")
    return "\n".join(lines)


def _type(field: dict[str, Any]) -> str:
    """Type and bounds of one option, from its JSON schema."""
    if "enum" in field:
        return "|".join(map(str, field["enum"]))
    if "const" in field:
        return str(field["const"])
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    limits = [f"{sign} {field[key]:g}" for key, sign in bounds.items() if key in field]
    return " ".join([field.get("type", "object"), *limits])


def is_run(what: str) -> bool:
    """Whether ``what`` names a folder to look into. A folder that merely bears a method's name does not."""
    from planish.result import RUN

    folder = Path(what)
    if not folder.is_dir():
        return False
    return (folder / RUN).is_file() or not any(what == owned.record.name for owned in host().records(Method))


def run_folder(folder: Path) -> dict[str, Any]:
    """A run folder: what was run, its records and its figures."""
    from planish.result import read_rows

    return {
        "folder": str(folder),
        "run": _run(folder),
        "records": [{"folder": name, **asdict(record)} for name, record in _records(folder)],
        "rows": [row.as_dict() for row in read_rows(folder)],
    }


def run_text(data: dict[str, Any]) -> str:
    from planish.compare import Row
    from planish.result import text_table

    run = data["run"]
    lines = [f"{run['source']}  seed {run['seed']}  task {run['task'] or 'none'}"]
    for record in data["records"]:
        lines.append(
            f"{record['folder']}  {record['distribution']}:{record['method']} {record['version']}  "
            f"{record['seconds']:.1f} s  peak {record['peak_memory'] / 1e6:.0f} MB  {json.dumps(record['config'])}"
        )
        lines += [f"    {name}: {value}" for name, value in record["facts"].items() if _is_plain(value)]
    return "\n".join([*lines, "", text_table([Row.from_dict(row) for row in data["rows"]])])


def _is_plain(value: Any) -> bool:
    """Whether a fact fits on its line: lists and tables stay in the record and in the report."""
    return isinstance(value, str | int | float)


def report(folders: list[Path], out: Path | None) -> Path:
    """Write one report over the given run folders."""
    from planish.report import write_report
    from planish.result import REPORT, read_rows

    rows, records, titles = [], [], []
    for folder in folders:
        titles.append(_run(folder)["source"])
        found = read_rows(folder)
        if len(folders) > 1:
            import dataclasses

            found = [dataclasses.replace(row, label=f"{folder.name}: {row.label}") for row in found]
        rows += found
        records += [(f"{folder.name}/{name}", record) for name, record in _records(folder)]
    path = out or folders[0] / REPORT
    try:
        write_report(path, ", ".join(dict.fromkeys(titles)), rows, records)
    except OSError as error:
        raise RunError(f"report {path}: cannot be written ({error.strerror})") from None
    return path


def _run(folder: Path) -> dict[str, Any]:
    from planish.result import RUN, read

    if not (folder / RUN).is_file():
        raise RunError(f"{folder}: no {RUN}; this is not a run folder")
    return read(folder / RUN, "source", "seed", "task")


def _records(folder: Path) -> list[tuple[str, Any]]:
    from planish.record import FILE, Record

    found = sorted(
        path.parent for path in folder.glob(f"[0-9][0-9]-*/{FILE}") if path.parent.suffix != ".tmp"
    )
    return [(path.name, Record.read(path)) for path in found]


def benchmarks() -> dict[str, Any]:
    return {
        "benchmarks": [
            {"name": owned.record.name, "distribution": owned.distribution, "summary": owned.record.summary}
            for owned in host().records(Benchmark)
        ]
    }


def benchmarks_text(data: dict[str, Any]) -> str:
    lines = [f"{row['name']:<18} {row['distribution']:<22} {row['summary']}" for row in data["benchmarks"]]
    return "\n".join(lines) or "no benchmark is installed"


def bench(name: str, quick: bool) -> dict[str, Any]:
    """All rows of a benchmark; each is told on standard error as it comes."""
    from planish import bench as benches

    rows = []
    with redirect_stdout(sys.stderr):  # what a benchmark prints is no result
        for row in benches.run(name, quick):
            rows.append(row.as_dict())
            print(f"{row.metric}: {row.value:.4g} {row.unit}", flush=True)
    return {"benchmark": name, "quick": quick, "rows": rows}


def bench_text(data: dict[str, Any]) -> str:
    lines = [["metric", "ours", "peer", "theirs", "ratio", "bar", "holds", "device"]]
    words = {True: "yes", False: "NO", None: "-"}
    for row in data["rows"]:
        spread = f" ± {row['spread']:.2g}" if row["spread"] is not None else ""
        lines.append(
            [
                row["metric"],
                f"{row['value']:.4g}{spread} {row['unit']}",
                row["peer"],
                f"{row['peer_value']:.4g} {row['unit']}",
                f"{row['ratio']:.3g}",
                row["bar"] or "-",
                words[row["holds"]],
                row["device"],
            ]
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )
