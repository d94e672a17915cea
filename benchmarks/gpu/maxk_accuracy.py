"""Test accuracy of MaxK and ReLU over k on small real graphs, ten seeds, until both have converged.

    PYTHONPATH=core/src:sdk/src:plugins/graph/src:plugins/maxk/src python3 benchmarks/gpu/maxk_accuracy.py \
        --data FOLDER --out maxk-accuracy.json [--quick] [--processes 6] [--device cuda]

FOLDER holds graphs/*.npz. Networks of one setting are trained beside each other (`planish_maxk.stacked`), settings in a few
processes; the file is written after each setting.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / part / "src") for part in ("core", "sdk", "plugins/graph", "plugins/maxk")]

import torch  # noqa: E402

from planish import measure  # noqa: E402
from planish_graph.files import read_labelled  # noqa: E402
from planish_graph.generate import Labelled, planted_communities  # noqa: E402
from planish_maxk.accuracy import RELU, Setting, train  # noqa: E402

Result = dict[str, Any]
PLANTED = "planted communities"
GRAPHS = ("flickr_small", "blogcatalog", "amazon_photo", "cora", "citeseer", PLANTED)
KS = (RELU, 4, 8, 16, 32, 64)
WIDTHS = (64, 256)
KS_OF_GCN = (RELU, 8, 16, 32)


def graph(name: str, data: Path) -> Labelled:
    """Binary features that fill a third of the matrix are faster dense."""
    if name == PLANTED:
        return planted_communities(2000, 5, signal=0.6)
    return read_labelled(data / "graphs" / f"{name}.npz", dense=name == "amazon_photo")


def one(job: tuple[str, str, int, int], epochs: int, seeds: int, data: Path, device: str) -> Result:
    """One graph, network, width and k; all seeds."""
    name, kind, width, k = job
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    start = time.time()
    setting = Setting(kind=kind, width=width, epochs=epochs)  # type: ignore[arg-type]
    found = train(graph(name, data), k, range(seeds), setting, device)
    return {
        "graph": name, "kind": kind, "width": width, "k": k, "values": found.values, "mean": found.mean,
        "deviation": found.deviation, "best epochs": found.epochs, "seconds": time.time() - start,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--processes", type=int, default=6)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--keep", type=Path, help="results of an earlier run; what they have is not run again"
    )
    options = parser.parse_args()
    jobs = [(g, "sage", w, k) for w in reversed(WIDTHS) for g in GRAPHS for k in KS if k < w]
    jobs += [(g, "gcn", 64, k) for g in GRAPHS for k in KS_OF_GCN]
    if options.quick:
        jobs, options.epochs = [("cora", "sage", 64, k) for k in (RELU, 16)], 20
    seeds = 2 if options.quick else 10
    result: Result = {
        "device": measure.device_name(options.device), "torch": torch.__version__, "epochs": options.epochs,
        "seeds": seeds, "settings": [], "failed": [],
    }  # fmt: skip
    if options.keep and options.keep.is_file():
        result["settings"] = json.loads(options.keep.read_text())["settings"]
        have = {(s["graph"], s["kind"], s["width"], s["k"]) for s in result["settings"]}
        jobs = [job for job in jobs if job not in have]
    start = time.time()
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        running = {
            pool.submit(one, job, options.epochs, seeds, options.data, options.device): job for job in jobs
        }
        for done in as_completed(running):
            try:
                found = done.result()
                result["settings"].append(found)
                line = {n: found[n] for n in ("graph", "kind", "width", "k", "mean", "deviation", "seconds")}
                print(f"{time.time() - start:6.1f} s  {json.dumps(line)}", flush=True)
            except Exception:  # the other settings still run; the exit status tells
                result["failed"].append({"job": running[done], "error": traceback.format_exc()[-1500:]})
                print(f"failed: {running[done]} {result['failed'][-1]['error']}", flush=True)
            options.out.write_text(json.dumps({**result, "seconds": time.time() - start}))
    if result["failed"]:
        sys.exit(f"{len(result['failed'])} settings failed; see {options.out}")


if __name__ == "__main__":
    main()
