"""The HTML report: one file, made of measured rows and records and of nothing else."""

from __future__ import annotations

import contextlib
import html
import json
import time
from collections.abc import Sequence
from pathlib import Path

from planish.charts import bars
from planish.compare import NOT_MEASURED, Row
from planish.record import Record
from planish.result import cells, columns, megabytes, metric, milliseconds

STYLE = """
:root{color-scheme:light dark;--ink:#1d2733;--soft:#5b6b7b;--line:#d7dee6;--paper:#fff;--bar:#3b73b9}
@media(prefers-color-scheme:dark){:root{--ink:#e4e9ef;--soft:#9aa8b6;--line:#364352;--paper:#141a21;--bar:#6aa3e8}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:1100px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2.2rem}p.note{color:var(--soft)}
.wide{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
th,td{text-align:left;padding:.35rem .8rem .35rem 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--soft);font-weight:600}figure{margin:1.2rem 0;max-width:900px}figcaption{color:var(--soft)}
svg{width:100%;font-size:12px}svg rect{fill:var(--bar)}svg text{fill:var(--ink)}svg .value{fill:var(--soft)}
pre{background:color-mix(in srgb,var(--line) 35%,transparent);padding:.8rem;overflow-x:auto;font-size:.8rem}
"""


def write_report(path: Path, title: str, rows: Sequence[Row], records: Sequence[tuple[str, Record]]) -> None:
    """Write the report to ``path``, whole or not at all.

    Args:
        title: what was run.
        rows: measured models, side by side; may be empty.
        records: (stage folder, record) in order.
    """
    body = [f"<h1>{html.escape(title)}</h1>", _table(rows), _how(rows), _before_after(rows)]
    body += [_sparsity(row) for row in rows]
    body += [_stages(records), *(_record(name, record) for name, record in records)]
    written = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>planish: {html.escape(title)}</title><style>{STYLE}</style>"
        f"<body>{''.join(body)}<p class=note>Written by planish, {written}.</p></body></html>\n"
    )
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(page, encoding="utf-8")
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return f"<p class=note>Figures: {NOT_MEASURED}.</p>"
    headings = columns(rows)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    lines = (
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells(row, headings)) + "</tr>"
        for row in rows
    )
    return (
        f"<h2>Measured side by side</h2><div class=wide><table><tr>{head}</tr>{''.join(lines)}</table></div>"
    )


def _how(rows: Sequence[Row]) -> str:
    """How each figure was taken, once for each way."""
    ways = {f"{m.name}: {m.how}" for row in rows for m in [*row.quality, *filter(None, [row.latency])]}
    if not ways:
        return ""
    lines = [
        *sorted(ways),
        "speed: reference time over own time, round by round; median, and in brackets the quartiles",
        "size on disk: bytes of all files of the model, its tokenizer and config included",
        "masked only: more zeros in tensors of the same size, and no speed-up was measured",
    ]
    return "<ul class=note>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _before_after(rows: Sequence[Row]) -> str:
    if len(rows) < 2:
        return ""
    charts = [bars("size on disk (MB)", [(r.label, r.size / 1e6, megabytes(r.size)) for r in rows])]
    timed = [(r.label, 1e3 * r.latency.value, milliseconds(r)) for r in rows if r.latency]
    charts.append(bars("latency (ms)", timed))
    for name in dict.fromkeys(m.name for row in rows for m in row.quality):
        found = [(r.label, m.value, metric(m)) for r in rows for m in r.quality if m.name == name]
        charts.append(bars(name, found))
    return "<h2>Before and after</h2>" + "".join(charts)


def _sparsity(row: Row) -> str:
    layers = [
        (name, 100 * (1 - nonzeros / size), f"{100 * (1 - nonzeros / size):.1f} % of {size:,}")
        for name, (size, nonzeros) in row.counts.layers.items()
        if size
    ]
    if not any(value >= 1.0 for _, value, _ in layers):
        return ""
    return (
        f"<details><summary>Zeros layer by layer: {html.escape(row.label)}</summary>"
        f"{bars('stored zeros, % of each layer', layers, limit=100.0)}</details>"
    )


def _stages(records: Sequence[tuple[str, Record]]) -> str:
    if not records:
        return ""
    memory = [
        (f"{name} {r.method}", r.peak_memory / 1e6, f"{r.peak_memory / 1e6:.0f} MB") for name, r in records
    ]
    seconds = [(f"{name} {r.method}", r.seconds, _seconds(r)) for name, r in records]
    own = "".join(
        bars(f"{name} {r.method}: {title}", values) for name, r in records for title, values in r.charts
    )
    return (
        "<h2>Stages</h2>"
        + bars(f"peak memory of the process during each stage (MB; {records[0][1].peak_memory_how})", memory)
        + bars("wall time of each stage (s)", seconds)
        + own
    )


def _seconds(record: Record) -> str:
    resumed = f", {record.resumed_units} units taken over" if record.resumed_units else ""
    return f"{record.seconds:.1f} s{resumed}"


def _record(name: str, record: Record) -> str:
    facts = {
        "method": f"{record.distribution}:{record.method} {record.version}",
        "config": record.config,
        "seed": record.seed,
        "device": record.device,
        "facts": record.facts,
        "libraries": record.libraries,
    }
    text = html.escape(json.dumps(facts, indent=1, ensure_ascii=False))
    return f"<details><summary>Record of {html.escape(name)} {html.escape(record.method)}</summary><pre>{text}</pre></details>"
