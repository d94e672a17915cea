"""Train the embedded language model.

Two steps, so that the text is always that of one CPython, whatever machine trains:

    python train_lm.py prepare CORPUS              # documents and tokenizers, written as files
    python train_lm.py train CORPUS --recipes recipes.json --out LM --result RESULT.json --scratch SCRATCH

`train` trains every recipe that has no teachers, then the recipes that distil from those, and writes the one that fits
the size limit and has the fewest bits per byte on the validation documents. Those are training documents set aside by
name. The held-out documents are measured once, on the files as written. `--explore` stops before that.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from planish.bench import Row
from planish_testbed import corpus
from planish_testbed.lm import END_OF_TEXT, bits_per_byte, stream_bits, token_stream

VALIDATION = frozenset(
    {
        "topic:booleans",
        "topic:calls",
        "topic:class",
        "topic:numeric-types",
        "topic:yield",
        "module:calendar",
        "module:cmd",
        "module:contextlib",
        "module:copy",
        "module:csv",
        "module:pprint",
        "module:random",
        "module:selectors",
        "module:smtplib",
        "module:timeit",
        "module:uuid",
    }
)
VOCABULARIES = (2048, 4096)
CONTEXT = 512
PROMPT = 16
LIMIT_BYTES = 11_500_000


@dataclass(frozen=True)
class Recipe:
    """One training configuration; the defaults are a plain run."""

    name: str
    vocab: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 8
    kv_heads: int = 4
    intermediate: int = 704
    epochs: float = 40
    batch: int = 32
    lr: float = 1.5e-3
    weight_decay: float = 0.3
    dropout: float = 0.2
    attention_dropout: float = 0.0
    split: float = 0.0  # probability that a training token is replaced by the two tokens it was merged from
    noise: float = 0.0  # probability that an input token is replaced by a random one
    ema: float = 0.998
    warmup: float = 0.03
    seed: int = 0
    teachers: tuple[str, ...] = ()
    distil: float = 0.8  # weight of the teachers' distribution against that of the text
    samples: int = 0  # windows of text to sample after training, for the recipes that this one teaches
    sampled_share: float = 0.0  # share of a batch that is text sampled from the teachers


def read_recipe(entry: dict[str, Any]) -> Recipe:
    known = {field.name for field in fields(Recipe)}
    for name in sorted(entry.keys() - known):
        raise SystemExit(f"unknown recipe field {name!r}; valid: {', '.join(sorted(known))}")
    return Recipe(**{**entry, "teachers": tuple(entry.get("teachers", ()))})


# -- the prepared corpus ----------------------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Write documents.json (three splits and where they come from) and one tokenizer file a vocabulary size."""
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, list[tuple[str, str]]] = {"train": [], "validation": [], "heldout": []}
    for document in corpus.train_documents():
        split = "validation" if document.name in VALIDATION else "train"
        splits[split].append((document.name, document.text))
    splits["heldout"] = [(document.name, document.text) for document in corpus.heldout_documents()]
    source = {"cpython": platform.python_version(), "fingerprint": corpus.fingerprint()}
    (folder / "documents.json").write_text(json.dumps({"source": source, **splits}))
    for size in VOCABULARIES:
        tokenizer = train_tokenizer([text for _, text in splits["train"]], size)
        tokenizer.save(str(folder / f"tokenizer-{size}.json"))
    for split, documents in splits.items():
        print(split, len(documents), "documents", sum(len(text.encode()) for _, text in documents), "bytes")


def train_tokenizer(texts: list[str], size: int) -> Any:
    """Byte-level BPE over `texts`; `size` counts the 256 bytes and the end-of-text token (id 0)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def read_documents(folder: Path) -> tuple[dict[str, str], dict[str, list[corpus.Document]]]:
    content = json.loads((folder / "documents.json").read_text())
    source = content.pop("source")
    return source, {split: [corpus.Document(*pair) for pair in pairs] for split, pairs in content.items()}


def read_tokenizer(folder: Path, size: int) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / f"tokenizer-{size}.json"),
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def merge_parents(folder: Path, size: int) -> np.ndarray:
    """[vocab, 2] int64: the two tokens that each token was merged from; -1 where it was not merged."""
    model = json.loads((folder / f"tokenizer-{size}.json").read_text())["model"]
    vocab = model["vocab"]
    parents = np.full((len(vocab), 2), -1)
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        parents[vocab[left + right]] = vocab[left], vocab[right]
    return parents


def undo_merges(ids: np.ndarray, parents: np.ndarray, rate: float, rng: np.random.Generator) -> np.ndarray:
    """Replace each token by its two parts with probability `rate`, twice over: the text stays the same.

    A cheap relative of BPE dropout (Provilkov et al., 2020): the model sees one text under many segmentations.
    """
    for _ in range(2):
        chosen = (parents[ids, 0] >= 0) & (rng.random(len(ids)) < rate)
        position = np.cumsum(1 + chosen) - 1 - chosen
        out = np.empty(len(ids) + chosen.sum(), dtype=ids.dtype)
        out[position] = np.where(chosen, parents[ids, 0], ids)
        out[position[chosen] + 1] = parents[ids[chosen], 1]
        ids = out
    return ids


def batches(
    documents: list[np.ndarray], parents: np.ndarray, recipe: Recipe, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Endless [batch, CONTEXT + 1] windows; each pass has its own order, offset and segmentation."""
    rows = np.empty((0, CONTEXT + 1), dtype=np.int64)
    while True:
        order = rng.permutation(len(documents))
        stream = np.concatenate([np.concatenate([[0], documents[index]]) for index in order])
        if recipe.split:
            stream = undo_merges(stream, parents, recipe.split, rng)
        stream = np.roll(stream, -rng.integers(len(stream)))
        count = (len(stream) - 1) // CONTEXT
        windows = np.lib.stride_tricks.sliding_window_view(stream, CONTEXT + 1)[::CONTEXT][:count]
        rows = np.concatenate([rows, windows[rng.permutation(count)]])
        while len(rows) >= recipe.batch:
            yield rows[: recipe.batch]
            rows = rows[recipe.batch :]


# -- one model --------------------------------------------------------------------------------------------------------


def build(recipe: Recipe) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=recipe.vocab,
        hidden_size=recipe.hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        head_dim=recipe.hidden // recipe.heads,
        intermediate_size=recipe.intermediate,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attention_dropout=recipe.attention_dropout,
        bos_token_id=0,
        eos_token_id=0,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
                projection.weight.mul_((2 * recipe.layers) ** -0.5)
    return model


def add_dropout(model: Any, rate: float) -> None:
    """Dropout on the embedding and on what each block adds to the residual stream, as hooks: the model stays plain."""

    def drop(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, rate, module.training)

    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)
    model.model.embed_tokens.register_forward_hook(drop)


@torch.inference_mode()
def sample(model: Any, prompts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """[N, CONTEXT + 1] tokens drawn from the model at temperature 1, each row a continuation of its prompt [N, P]."""
    rows, past = prompts, None
    while rows.shape[1] <= CONTEXT:
        step = model(input_ids=rows if past is None else rows[:, -1:], past_key_values=past, use_cache=True)
        past = step.past_key_values
        drawn = torch.multinomial(step.logits[:, -1].float().softmax(-1), 1, generator=generator)
        rows = torch.cat([rows, drawn], 1)
    return rows


def fp16_bytes(recipe: Recipe) -> int:
    with torch.device("meta"):
        return sum(2 * int(parameter.numel()) for parameter in build(recipe).parameters())


def read_model(scratch: Path, name: str, device: str, recipe: Recipe | None = None) -> Any:
    """The best weights of a recipe, in evaluation mode; bf16 on a GPU."""
    recipe = recipe or read_recipe(json.loads((scratch / f"{name}.json").read_text())["recipe"])
    model = build(recipe)
    state = {key: tensor.float() for key, tensor in load_file(scratch / f"{name}.safetensors").items()}
    model.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    if device == "cuda":
        for parameter in model.parameters():  # the parameters alone: the rotary frequencies need fp32
            parameter.data = parameter.data.bfloat16()
    return model.to(device).eval()


def train_one(recipe: Recipe, folder: Path, scratch: Path, device: str) -> dict[str, Any]:
    """Train, keep the moving average of the weights that is best on the validation documents, return the log.

    A recipe whose finished log is in `scratch` is not trained again.
    """
    path = scratch / f"{recipe.name}.json"
    if path.exists():
        log: dict[str, Any] = json.loads(path.read_text())
        if log["finished"] and read_recipe(log["recipe"]) == recipe:
            return log
    started = time.perf_counter()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 8) if device == "cuda" else os.cpu_count() or 1)
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    _, splits = read_documents(folder)
    tokenizer = read_tokenizer(folder, recipe.vocab)
    documents = [
        np.array(tokenizer(document.text, verbose=False)["input_ids"]) for document in splits["train"]
    ]
    validation = token_stream(tokenizer, splits["validation"])
    validation_bytes = sum(len(document.text.encode()) for document in splits["validation"])
    parents = merge_parents(folder, recipe.vocab)

    model = build(recipe).to(device)
    add_dropout(model, recipe.dropout)
    average = build(recipe).to(device).eval()
    average.load_state_dict(model.state_dict())
    teachers = [read_model(scratch, name, device) for name in recipe.teachers]
    sampled = np.empty((0, CONTEXT + 1), dtype=np.int64)
    if recipe.sampled_share:
        sampled = np.concatenate([np.load(scratch / f"{name}.npy") for name in recipe.teachers])

    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.95), fused=device == "cuda")
    tokens = sum(map(len, documents))
    steps = max(10, round(recipe.epochs * tokens / (recipe.batch * CONTEXT)))
    warmup = max(1, round(recipe.warmup * steps))
    curve: list[tuple[int, float, float]] = []
    best = math.inf
    source = batches(documents, parents, recipe, rng)
    running = torch.zeros((), device=device)

    def write_log(finished: bool) -> dict[str, Any]:
        log = {
            "recipe": asdict(recipe),
            "finished": finished,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "fp16_bytes": fp16_bytes(recipe),
            "steps": steps,
            "seconds": round(time.perf_counter() - started, 1),
            "validation_bits_per_byte": best,
            "curve": curve,
        }
        path.write_text(json.dumps(log))
        return log

    model.train()
    for step in range(1, steps + 1):
        scale = min(step / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr * scale
        window = next(source).copy()
        if recipe.sampled_share:
            count = round(recipe.sampled_share * recipe.batch)
            window[:count] = sampled[rng.choice(len(sampled), count, replace=False)]
        rows = torch.from_numpy(window)
        if device == "cuda":
            rows = rows.pin_memory().to(device, non_blocking=True)
        inputs, targets = rows[:, :-1], rows[:, 1:].flatten()
        if recipe.noise:
            noisy = torch.rand(inputs.shape, device=device) < recipe.noise
            inputs = torch.where(noisy, torch.randint_like(inputs, recipe.vocab), inputs)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            logits = model(input_ids=inputs).logits.flatten(0, 1)
            loss = F.cross_entropy(logits.float(), targets)
            if teachers:
                with torch.no_grad():
                    given = torch.zeros(logits.shape, device=device)
                    for teacher in teachers:
                        given += teacher(input_ids=inputs).logits.flatten(0, 1).float().softmax(-1)
                soft = F.cross_entropy(logits.float(), given / len(teachers))
                loss = recipe.distil * soft + (1 - recipe.distil) * loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running += loss.detach()
        with torch.no_grad():
            decay = min(recipe.ema, step / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
        every = max(1, steps // 12)
        if (step % every == 0 and step > steps // 3) or step == steps:
            value = stream_bits(average, validation, CONTEXT) / validation_bytes
            curve.append((step, running.item() / every, value))
            running.zero_()
            if value < best:
                best = value
                state = {name: tensor.half().contiguous() for name, tensor in average.state_dict().items()}
                del state["lm_head.weight"]
                save_file(state, scratch / f"{recipe.name}.safetensors", metadata={"format": "pt"})
            write_log(finished=False)
    if recipe.samples:
        generator = torch.Generator(device).manual_seed(recipe.seed)
        stream = np.concatenate(documents)
        starts = rng.integers(len(stream) - PROMPT, size=recipe.samples)
        prompts = torch.from_numpy(stream[starts[:, None] + np.arange(PROMPT)]).to(device)
        drawn = sample(read_model(scratch, recipe.name, device, recipe), prompts, generator)
        np.save(scratch / f"{recipe.name}.npy", drawn.cpu().numpy())
    log = write_log(finished=True)
    last = f"{curve[-1][1]:.3f} loss, {curve[-1][2]:.4f} at the end"
    print(f"{recipe.name:28s} {best:.4f} validation bits per byte ({last}), {log['seconds']} s", flush=True)
    return log


# -- all of them ------------------------------------------------------------------------------------------------------


def train_all(
    recipes: list[Recipe], folder: Path, scratch: Path, device: str, workers: int
) -> list[dict[str, Any]]:
    logs = []
    for stage in (False, True):
        chosen = [recipe for recipe in recipes if bool(recipe.teachers) is stage]
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(train_one, recipe, folder, scratch, device) for recipe in chosen]
            logs += [job.result() for job in jobs]
    return sorted(logs, key=lambda log: float(log["validation_bits_per_byte"]))


def ship(log: dict[str, Any], folder: Path, scratch: Path, out: Path) -> None:
    """Write the plain Hugging Face folder: fp16 weights, config, tokenizer, generation defaults."""
    recipe = read_recipe(log["recipe"])
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(scratch / f"{recipe.name}.safetensors", out / "model.safetensors")
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": recipe.vocab,
        "hidden_size": recipe.hidden,
        "num_hidden_layers": recipe.layers,
        "num_attention_heads": recipe.heads,
        "num_key_value_heads": recipe.kv_heads,
        "head_dim": recipe.hidden // recipe.heads,
        "intermediate_size": recipe.intermediate,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": True,
        "use_cache": True,
        "dtype": "float16",
        **ends,
    }
    token = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_TEXT)
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
        **token,
    }
    generation = {**ends, "pad_token_id": 0, "do_sample": False}
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("generation_config.json", generation),
    ):
        (out / name).write_text(json.dumps(content, indent=2) + "\n")
    (out / "tokenizer.json").write_bytes((folder / f"tokenizer-{recipe.vocab}.json").read_bytes())


def measure(out: Path, folder: Path, device: str) -> dict[str, Any]:
    """Bits per byte of the held-out documents under the shipped files, beside xz on the same bytes."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, splits = read_documents(folder)
    model = (
        AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32, local_files_only=True)
        .to(device)
        .eval()
    )
    tokenizer = AutoTokenizer.from_pretrained(out, local_files_only=True)
    result = bits_per_byte(model, tokenizer, splits["heldout"], CONTEXT)
    heldout = "\n\n".join(document.text for document in splits["heldout"]).encode()
    train = "\n\n".join(document.text for document in splits["train"] + splits["validation"]).encode()
    alone = len(lzma.compress(heldout, preset=9))
    beside = len(lzma.compress(train + b"\n\n" + heldout, preset=9)) - len(lzma.compress(train, preset=9))
    return {
        "heldout_bits_per_byte": result.value,
        "xz_9_bits_per_byte": 8 * alone / result.bytes,
        "xz_9_given_train_bits_per_byte": 8 * beside / result.bytes,
        "heldout_bytes": result.bytes,
        "heldout_tokens": result.tokens,
        "train_bytes": sum(len(document.text.encode()) for document in splits["train"]),
        "validation_bytes": sum(len(document.text.encode()) for document in splits["validation"]),
        "evaluation": f"sliding windows of {CONTEXT} tokens, stride {CONTEXT // 2}, fp32 arithmetic, fp16 weights",
    }


def rows(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The held-out figure beside xz, in the form of a benchmark."""
    peers = {
        "xz -9 of the held-out text": report["xz_9_bits_per_byte"],
        "xz -9 of it after the training text": report["xz_9_given_train_bits_per_byte"],
    }
    return [
        Row(
            metric="held-out bits per byte",
            value=report["heldout_bits_per_byte"],
            unit="bit",
            peer=peer,
            peer_value=value,
            bar=("<=", 1.0),
            device=report["device"],
            command=report["command"],
        ).as_dict()
        for peer, value in peers.items()
    ]


def train(arguments: argparse.Namespace) -> None:
    folder, scratch, out = arguments.corpus, arguments.scratch, arguments.out
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scratch.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    recipes = [read_recipe(entry) for entry in json.loads(arguments.recipes.read_text())]
    logs = train_all(recipes, folder, scratch, device, arguments.workers)
    best = next(log for log in logs if log["fp16_bytes"] <= LIMIT_BYTES)
    report: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or "cpu",
        "torch": torch.__version__,
        "text": read_documents(folder)[0],
        "command": shlex.join(["python", *sys.argv]),
        "seconds": round(time.perf_counter() - started, 1),
        "runs": logs,
    }
    if not arguments.explore:
        ship(best, folder, scratch, out)
        report |= {
            "shipped": best["recipe"]["name"],
            "parameters": best["parameters"],
            "folder_bytes": sum(path.stat().st_size for path in out.iterdir()),
            "validation_bits_per_byte": best["validation_bits_per_byte"],
            **measure(out, folder, device),
        }
        report |= {"benchmark": "testbed language model", "note": report["evaluation"], "rows": rows(report)}
    arguments.result.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: value for key, value in report.items() if key != "runs"}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    preparing = commands.add_parser("prepare", help="write documents and tokenizers of the running CPython")
    preparing.add_argument("corpus", type=Path)
    preparing.set_defaults(run=lambda arguments: prepare(arguments.corpus))
    training = commands.add_parser("train", help="train every recipe, write the best")
    training.add_argument("corpus", type=Path)
    training.add_argument("--recipes", type=Path, default=Path(__file__).with_name("recipes.json"))
    training.add_argument("--out", type=Path, required=True, help="folder for the model that is shipped")
    training.add_argument("--result", type=Path, required=True, help="JSON file for the measurements")
    training.add_argument(
        "--scratch", type=Path, required=True, help="folder for the weights of every recipe"
    )
    training.add_argument("--workers", type=int, default=1, help="recipes trained at the same time")
    training.add_argument(
        "--explore", action="store_true", help="do not ship, do not touch the held-out text"
    )
    training.set_defaults(run=train)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
