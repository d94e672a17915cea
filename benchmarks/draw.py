"""Write docs/benchmarks.md from benchmarks/results/*.json: what was measured, beside what it is compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from planish.charts import bars

ROOT = Path(__file__).resolve().parent
CHARTED = 24
"""Most rows of a table that also gets a chart; a longer one could not be read."""
HEAD = """# Benchmarks

Figures as they were measured, from the files in `benchmarks/results/`. Ratios are ours over the peer's, from one run.
Repeat one with its command; add `--json` to keep the rows.
"""


def page(files: list[Path]) -> str:
    """The whole page."""
    return "\n".join([HEAD, *(section(json.loads(file.read_text()), file.name) for file in files)])


def section(data: dict[str, Any], name: str) -> str:
    """One result file: heading, command, table, and, where it is short, a chart of the ratios."""
    rows = data["rows"]
    lines = [f"## {data['benchmark']}", "", f"`{rows[0]['command']}` on {rows[0]['device']} ({name})", ""]
    lines += [f"{data['note']}", ""] if data.get("note") else []
    lines += ["| metric | ours | peer | theirs | ratio | bar | holds |", "|---|---|---|---|---|---|---|"]
    words = {True: "yes", False: "**no**", None: ""}
    for row in rows:
        spread = f" ± {row['spread']:.2g}" if row.get("spread") else ""
        ours = f"{row['value']:.4g}{spread} {row['unit']}"
        theirs = f"{row['peer_value']:.4g} {row['unit']}"
        lines.append(
            f"| {row['metric']} | {ours} | {row['peer']} | {theirs} | {row['ratio']:.3g} "
            f"| {row['bar'] or ''} | {words[row['holds']]} |"
        )
    if len(rows) <= CHARTED:
        drawn = [(r["metric"], r["ratio"], f"{r['ratio']:.2f}") for r in rows]
        lines += ["", bars("ours over the peer's", drawn)]
    return "\n".join([*lines, ""])


def main() -> None:
    files = sorted((ROOT / "results").glob("*.json"))
    target = ROOT.parent / "docs" / "benchmarks.md"
    target.write_text(page(files), encoding="utf-8")
    print(f"{target}: {len(files)} result files")


if __name__ == "__main__":
    main()
