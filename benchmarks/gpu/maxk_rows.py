"""Turn what `maxk.py` and `maxk_accuracy.py` wrote into the result files that the benchmark page is drawn from.

python3 benchmarks/gpu/maxk_rows.py maxk.json maxk-accuracy.json
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "core" / "src"))

from planish.bench import Row  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
TIMES = "python3 benchmarks/gpu/maxk.py --data FOLDER --out maxk.json"
ACCURACY = "python3 benchmarks/gpu/maxk_accuracy.py --data FOLDER --out maxk-accuracy.json"
EPOCH, MEMORY, COPY = 3.2, 4.0, 0.7
"""Bars: epochs this many times faster, activations this many times smaller, top-k at this share of a copy's rate."""
TIMES_NOTE = (
    "Width 256, fp32, medians of CUDA-event timings. Graphs are stand-ins with the degrees of the named ones; with locality 0.5 "
    "half of the neighbours are among 2,048 nodes nearby, with 0 none. Nothing is left out: top-k, clearing and adding up pieces of "
    "rows are counted. cuSPARSE is the faster of ALG2 and ALG3, preprocessed, at the same width. Epochs are forward, backward and Adam "
    "of 4-layer, 256-wide networks on the Reddit-like graph with TF32 products, the peer being the same network with ReLU and the "
    "faster cuSPARSE product in plain torch (PyG was not on the machine); activations are what a forward pass leaves allocated."
)
SINCE = (
    " Top-k, graphs, epochs and checks come from separate runs of one day; `when` in the data says which. What an epoch consists of "
    "(`profile`) was measured before the last change to the backward pass by tiles, epochs of GCN with MaxK at locality 0 before there "
    "was one."
)
"""What is to be said of the file in this folder."""
ACCURACY_NOTE = (
    "Two-layer networks, 200 full-batch epochs, dropout 0.5, test accuracy at the best validation, mean and standard deviation over ten "
    "seeds that are trained beside each other. The bar is one point below ReLU."
)


def times(found: dict[str, Any]) -> Iterator[Row]:
    """Top-k, both passes, epochs and activations."""

    def row(metric: str, value: float, unit: str, peer: str, theirs: float, most: float | None) -> Row:
        bar = None if most is None else ("<=", most)
        return Row(metric, value, unit, peer, theirs, bar, found["device"], TIMES)

    for name, taken in found["topk"].items():
        if not isinstance(taken, dict) or "ms" not in taken:
            continue
        most = 1 / COPY if "float32" in name and "pubmed" not in name and "bfloat" not in name else None
        copied = taken["ms"] * taken["share of copy rate"]
        yield row(f"top-k, {name}", taken["ms"], "ms", "a copy of as many bytes", copied, most)
        if "torch.topk ms" in taken:
            yield row(f"top-k, {name}", taken["ms"], "ms", "torch.topk", taken["torch.topk ms"], 1 / 5)
    for name, graph in found["graphs"].items():
        if not isinstance(graph, dict):
            continue
        theirs = min(ms for way, ms in graph["cuSPARSE ms"].items() if "captured" not in way)
        replayed = [ms for way, ms in graph["cuSPARSE ms"].items() if "captured" in way]
        for k, taken in graph["k"].items():
            for part in ("forward", "backward"):
                ours = min(ms for way, ms in taken.items() if way.startswith(f"{part} ms"))
                most = 1.0 if int(k) <= 32 else None
                yield row(f"{part}, {name}, k = {k}", ours, "ms", "cuSPARSE", theirs, most)
                if replayed:
                    ours = min(ms for way, ms in taken.items() if way.startswith(f"{part} captured"))
                    metric = f"{part}, {name}, k = {k}, as a CUDA graph"
                    yield row(metric, ours, "ms", "cuSPARSE", min(replayed), most)
    for name, nets in found["epoch"].items():
        if not isinstance(nets, dict):
            continue
        relu = nets["relu"]
        for case, ours in nets.items():
            if case == "relu, blocks recomputed":
                yield row(f"epoch, {name}, {case}", ours["epoch ms"], "ms", "ReLU", relu["epoch ms"], None)
                yield row(
                    f"activations, {name}, {case}",
                    ours["activations MB"],
                    "MB",
                    "ReLU",
                    relu["activations MB"],
                    None,
                )
            if case.startswith("k = "):
                most = 1 / EPOCH if case.endswith("nothing") else None
                yield row(f"epoch, {name}, {case}", ours["epoch ms"], "ms", "ReLU", relu["epoch ms"], most)
                metric, most = f"activations, {name}, {case}", 1 / MEMORY
                yield row(metric, ours["activations MB"], "MB", "ReLU", relu["activations MB"], most)


def accuracies(found: dict[str, Any]) -> Iterator[Row]:
    """Every k beside ReLU, of the same graph, network and width."""
    settings = {(s["graph"], s["kind"], s["width"], s["k"]): s for s in found["settings"]}
    for (graph, kind, width, k), ours in sorted(settings.items()):
        if not k:
            continue
        relu = settings[graph, kind, width, 0]
        yield Row(
            metric=f"accuracy on {graph}, {kind}, k = {k} of {width}",
            value=ours["mean"],
            unit="%",
            peer=f"ReLU (standard deviation {relu['deviation']:.2f})",
            peer_value=relu["mean"],
            bar=(">=", 1 - 1 / relu["mean"]),
            device=found["device"],
            command=ACCURACY,
            spread=ours["deviation"],
        )


def write(target: Path, note: str, rows: Iterator[Row], found: dict[str, Any]) -> None:
    lines = [row.as_dict() for row in rows]
    held = [line["holds"] for line in lines if line["holds"] is not None]
    print(f"{target.name}: {len(lines)} rows, {sum(held)} of {len(held)} bars hold")
    page = {"benchmark": target.stem, "note": note, "rows": lines, **found}
    target.write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    one, other = (json.loads(Path(name).read_text(encoding="utf-8")) for name in sys.argv[1:3])
    write(RESULTS / "maxk-h100.json", TIMES_NOTE + SINCE, times(one), one)
    write(RESULTS / "maxk-accuracy-h100.json", ACCURACY_NOTE, accuracies(other), other)


if __name__ == "__main__":
    main()
