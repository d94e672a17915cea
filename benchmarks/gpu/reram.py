"""The crossbar simulator on a GPU: equal to the CPU, and how much faster with chips in batches.

PYTHONPATH=core/src:sdk/src:plugins/reram/src python benchmarks/gpu/reram.py --out reram.json [--quick] [--device cpu]
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from planish_reram.chip import Physics, compose, program
from planish_reram.converters import convert_inputs
from planish_reram.faults import draw
from planish_reram.layers import CrossbarLinear, Setup
from planish_reram.mvm import fast
from planish_reram.network import calibrate, crossbars, on_chips, program_chips, to_crossbars
from planish_reram.protection import LayerProtection
from planish_reram.quantise import quantise
from planish_reram.slicing import Layout
from planish_reram.specs import Converters, FaultRates, preset

RATES = FaultRates(p_hrs=0.0175, p_lrs=0.0904, p_row=0.002, p_col=0.002)


def seconds(work: Callable[[], Any], device: str, rounds: int = 11, warmup: int = 3) -> float:
    """Median over ``rounds``: between events on a GPU, wall time on a CPU."""
    for _ in range(warmup):
        work()
    taken = []
    for _ in range(rounds):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            work()
            end.record()
            end.synchronize()
            taken.append(start.elapsed_time(end) / 1000)
        else:
            begin = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def one_layer(
    out: int, inputs: int, device: str, setup: Setup, seeds: list[int], protection: Any = None
) -> CrossbarLinear:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, out, bias=False)
    made = CrossbarLinear(layer, setup, "layer", protection or LayerProtection())
    made.requires_grad_(False)
    x = torch.randn(64, inputs)
    calibrate(made, [{"x": x}], lambda batch: made(batch["x"]))
    made.to(device)
    made.program(seeds)
    return made


def equality(device: str, quick: bool, found: dict[str, Any], save: Callable[[], None]) -> None:
    """The same maps, levels, weights and codes on both devices, bit for bit; slow path equal to fast path."""
    size = (96, 200) if quick else (768, 768)
    maps = [draw((4, *size), RATES, [3, 4], "a", 0, 1, device=where).cpu() for where in ("cpu", device)]
    found["fault maps equal"] = bool(torch.equal(*maps))
    found["p_lrs measured"] = float((maps[1] == 2).float().mean())
    torch.manual_seed(1)
    weight = torch.randn(size)
    for mapping in ("offset", "differential"):
        physics = Physics(Layout(8, 2, mapping), RATES)
        parts = []
        for where in ("cpu", device):
            quantised = quantise(weight.to(where))
            cells = program(quantised, physics, [0, 1], "a")
            parts.append((cells.levels.cpu(), compose(cells, quantised, physics).cpu()))
        found[f"levels equal, {mapping}"] = bool(torch.equal(parts[0][0], parts[1][0]))
        found[f"weights equal, {mapping}"] = bool(torch.equal(parts[0][1], parts[1][1]))
    votes = LayerProtection(slices=torch.ones(size[0], dtype=torch.uint8), copies=3, vote="output")
    for name, converters, protection, cell_bits in (
        ("8-bit ADC", Converters(adc_bits=8), None, 2),
        ("8-bit ADC, bit-serial", Converters(adc_bits=8, dac_serial=True), None, 2),
        ("8-bit ADC, output vote", Converters(adc_bits=8), votes, 2),
        ("16-bit ADC, 8-bit cells", Converters(adc_bits=16), None, 8),
        ("no ADC, 8-bit cells", Converters(), None, 8),
    ):
        setup = Setup(Physics(Layout(8, cell_bits), RATES), converters)
        layer = one_layer(*size, "cpu", setup, [0, 1], protection)
        x = torch.randn(2, 32, size[1])
        codes = []
        for where in ("cpu", device):
            layer.to(where)
            layer.program([0, 1])
            sliced = layer.sliced()
            codes.append(sliced.codes(sliced.kept(layer.inputs(x.to(where)))).cpu())
        found[f"codes equal, {name}"] = bool(torch.equal(*codes))
    setup = Setup(Physics(Layout(), RATES), Converters(dac_bits=None), dtype=torch.float64)
    layer = one_layer(*size, device, setup, [0, 1])
    inputs = convert_inputs(torch.randn(2, 32, size[1], dtype=torch.float64, device=device), setup.converters)
    difference = layer.sliced()(inputs) - fast(inputs, layer.effective_weight())
    found["slow minus fast, float64"] = float(difference.abs().max())
    failed = [name for name, value in found.items() if value is False]
    if failed or found["slow minus fast, float64"] > 1e-9:
        raise AssertionError(f"not equal: {failed}, {found}")


def layers(device: str, quick: bool, found: dict[str, Any], save: Callable[[], None]) -> None:
    """Milliseconds a product, 768 x 768 and 128 vectors a chip, by path and number of chips."""
    size, batch = (64, 16) if quick else (768, 128)
    many = 4 if quick else 100
    torch.manual_seed(0)
    dense = torch.randn(size, size)
    votes = LayerProtection(slices=torch.ones(size, dtype=torch.uint8), copies=3, vote="output")
    variants: dict[str, tuple[Setup, Any]] = {
        "composed, ideal DAC": (Setup(converters=Converters(dac_bits=None)), None),
        "composed, 8-bit DAC": (Setup(), None),
        "composed, 8-bit DAC, calibrated range": (Setup(converters=Converters(dac_range="calibrated")), None),
        "sliced, 8-bit ADC": (Setup(converters=Converters(adc_bits=8)), None),
        "sliced, 8-bit ADC, differential": (
            Setup(Physics(Layout(8, 2, "differential")), Converters(adc_bits=8)), None,
        ),
        "sliced, 8-bit ADC, bit-serial": (Setup(converters=Converters(adc_bits=8, dac_serial=True)), None),
        "sliced, 8-bit ADC, output vote of 3": (Setup(converters=Converters(adc_bits=8)), votes),
    }  # fmt: skip
    places = [("cpu", 1), (device, 1), (device, many)] if device != "cpu" else [("cpu", 1), ("cpu", many)]
    with torch.inference_mode():
        for where, chips in places:
            x = torch.randn(chips, batch, size, device=where)
            weight = dense.to(where)
            rounds = 11
            found[f"torch linear, {where}, {chips} chips"] = 1e3 * seconds(
                lambda x=x, weight=weight: nn.functional.linear(x, weight), where, rounds
            )
            for name, (setup, protection) in variants.items():
                layer = one_layer(size, size, where, setup, list(range(chips)), protection)
                found[f"{name}, {where}, {chips} chips"] = 1e3 * seconds(
                    lambda layer=layer, x=x: layer(x), where, rounds
                )
                if name in ("composed, 8-bit DAC",):
                    faulty = Physics(rates=preset("march_test"))
                    quantised = layer.quantised
                    found[f"programming and composing, {where}, {chips} chips"] = 1e3 * seconds(
                        lambda q=quantised, f=faulty, n=chips: compose(program(q, f, range(n), "a"), q, f),
                        where,
                        rounds,
                    )
            save()


def network(device: str, quick: bool, found: dict[str, Any], save: Callable[[], None]) -> None:
    """A model of BERT-base's size on 100 chips, tile by tile with 8-bit ADCs, beside one chip on one CPU thread.

    The CPU runs one of the twelve layers, which are alike; its times are those of that layer, times twelve. Embeddings,
    attention and norms are computed too, on both sides. All chips are faulty, and all see the same sequences.
    """
    from transformers import BertConfig, BertModel

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(**small) if quick else BertConfig()
    depth = config.num_hidden_layers
    chips, at_once, sequences, length = (4, 2, 2, 16) if quick else (100, 20, 4, 128)
    setup = Setup(Physics(Layout(), RATES), Converters(adc_bits=8))
    draws = torch.Generator().manual_seed(0)
    ids, other = torch.randint(0, config.vocab_size, (2, sequences, length), generator=draws)
    found |= {
        "chips": chips,
        "chips at once": at_once,
        "sequences a chip": sequences,
        "tokens a sequence": length,
    }

    def build(where: str, layers: int) -> nn.Module:
        torch.manual_seed(0)
        config.num_hidden_layers = layers
        module = BertModel(config, add_pooling_layer=False).eval().requires_grad_(False).to(where)
        to_crossbars(module, setup)
        with torch.inference_mode():
            calibrate(module, [{"input_ids": other.to(where)}], lambda batch: module(**batch))
        return module

    def write(module: nn.Module, seeds: range) -> None:
        program_chips(module, seeds)
        for layer in crossbars(module).values():
            layer.sliced()

    host = build("cpu", 1)
    with torch.inference_mode():
        cpu_written = depth * seconds(lambda: write(host, range(1)), "cpu", 2, 1)
        cpu_run = depth * seconds(lambda: host(input_ids=ids), "cpu", 3, 1)
        wanted = host(input_ids=ids).last_hidden_state
        twin = copy.deepcopy(host).to(device)
        write(twin, range(1))
        got = twin(input_ids=ids.to(device)).last_hidden_state.cpu()
    found["cpu, one thread: programming a chip (s)"] = cpu_written
    found["cpu, one thread: a forward (s)"] = cpu_run
    found["one layer, chip 0: relative difference of device and cpu"] = float(
        (got - wanted).norm() / wanted.norm()
    )
    save()
    del twin
    module = build(device, depth)
    found["weights on crossbars"] = sum(layer.weight.numel() for layer in crossbars(module).values())
    batch = on_chips({"input_ids": ids.to(device)}, at_once)
    sync = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    writing, running = [], []
    with torch.inference_mode():
        for number in range(chips // at_once + 1):
            sync()
            begin = time.perf_counter()
            write(module, range(number * at_once, (number + 1) * at_once))
            sync()
            middle = time.perf_counter()
            module(**batch)
            sync()
            if not number:
                continue  # the first group warms up
            writing.append(middle - begin)
            running.append(time.perf_counter() - middle)
            share = chips / at_once
            written, run = statistics.median(writing) * share, statistics.median(running) * share
            found |= {
                "groups behind the medians": number,
                "device: programming, all chips (s)": written,
                "device: a forward, all chips (s)": run,
                "speed-up of the forward": cpu_run * chips / run,
                "speed-up with programming": (cpu_run + cpu_written) * chips / (run + written),
                "bar: at least 20": cpu_run * chips / run >= 20,
            }
            if device == "cuda":
                found["peak memory (GB)"] = torch.cuda.max_memory_allocated() / 1e9
            save()


PARTS = {"equality": equality, "network": network, "layers": layers}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if options.device == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "quick": options.quick,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")

    for part in map(PARTS.__getitem__, options.only):
        begin = time.perf_counter()
        found: dict[str, Any] = {}
        result[part.__name__] = found
        try:
            part(options.device, options.quick, found, save)
            print(f"{part.__name__}: OK, {time.perf_counter() - begin:.1f} s", flush=True)
        except Exception:  # the other parts still run; the exit status tells
            found["error"] = traceback.format_exc()
            print(f"{part.__name__}: {traceback.format_exc()}", flush=True)
        found["seconds"] = time.perf_counter() - begin
        save()
    if failed := [name for name, found in result.items() if isinstance(found, dict) and "error" in found]:
        sys.exit(f"failed: {', '.join(failed)}; see {options.out}")


if __name__ == "__main__":
    main()
