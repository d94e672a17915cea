"""Runs a pipeline: stage by stage, each in a folder named by the hash of everything that decides its result.

A stage works in ``NN-KEY.tmp`` and is renamed when complete, so what has its final name is whole. Repeating a run reuses
finished stages by their key, and a stage that was killed finds the units it had saved.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planish import digest, measure
from planish.artifact import MODEL, Artifact, get_builder, write_json
from planish.compare import Entry, Row, compare
from planish.context import Context
from planish.errors import RunError
from planish.events import Event, Events, Listener
from planish.method import API, resolve
from planish.model import TorchModel
from planish.pipeline import Pipeline, Stage
from planish.record import Record, library_versions
from planish.result import MEASUREMENTS, RUN, Result, read, read_rows
from planish.source import Source

if TYPE_CHECKING:
    from torch import nn

    from planish.tasks import Task


def run(
    pipeline: Pipeline,
    source: Source,
    out: Path,
    device: str,
    measuring: str,
    reference: bool,
    listeners: tuple[Listener, ...],
) -> Result:
    """See `Pipeline.run`."""
    for mistake in mistakes(device, measuring):
        raise RunError(mistake)
    for problem in pipeline.problems(source, out):
        raise problem
    with _disk_errors(out), _locked(out):
        session = _Session(pipeline.seed, source.task, out, resolve_device(device), listeners)
        try:
            return session.run(pipeline, source, measuring, reference)
        finally:
            session.events.close()


def mistakes(device: str, measuring: str) -> list[str]:
    """What is wrong with the settings of a run, one line each."""
    found = []
    if measuring not in ("ends", "stages", "none"):
        found.append(f"measure = {measuring!r} is not one of ends, stages, none")
    try:
        resolve_device(device)
    except RunError as error:
        found.append(str(error))
    return found


def resolve_device(device: str) -> str:
    """``"auto"`` as the device it stands for.

    Raises:
        RunError: a CUDA device was asked for that is not there, or torch does not know the name.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        named = torch.device(device)
    except (RuntimeError, TypeError):
        raise RunError(f"device = {device!r} is not one of auto, cpu, cuda, cuda:N") from None
    if not isinstance(device, str) or named.type not in ("cpu", "cuda"):
        raise RunError(f"device = {device!r} is not one of auto, cpu, cuda, cuda:N")
    if named.type == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise RunError(f"device = {device!r}: torch sees no CUDA device here")
    if (count := torch.cuda.device_count()) <= (named.index or 0):
        raise RunError(f"device = {device!r}: torch sees {count} CUDA device{'s' if count > 1 else ''} here")
    return device


@dataclass(slots=True)
class _Live:
    """An artifact, with its model where this process already has it in memory."""

    artifact: Artifact
    model: Any = None


class _Session:
    """One process at work in one run folder."""

    def __init__(
        self, seed: int, task: Task | None, out: Path, device: str, listeners: tuple[Listener, ...]
    ) -> None:
        self.seed = seed
        self.task = task
        self.out = out
        self.device = device
        self.data = task.fingerprint() if task else None
        self.events = Events(out, listeners)
        self.given: nn.Module | None = None

    def run(self, pipeline: Pipeline, source: Source, measuring: str, reference: bool) -> Result:
        self.given = source.module
        start = self._start(source)
        self._claim(pipeline, source, start.artifact)
        entries = [Entry("source", start.artifact, self.given)]
        folders = []
        live = start
        for number, stage in enumerate(pipeline.stages, 1):
            folder, live = self._stage(number, stage, live)
            folders.append(folder)
            last = number == len(pipeline.stages)
            label = "result" if last else f"after {number:02d} {stage.method}"
            entries.append(Entry(label, live.artifact, self.given))
        base = 0
        if measuring != "none":
            backend = [(n, s) for n, s in enumerate(pipeline.stages, 1) if s.owned().record.kind == "backend"]
            if reference and backend and len(backend) < len(pipeline.stages):
                other = _Live(start.artifact)
                for number, stage in backend:
                    _, other = self._stage(number, stage, other)
                base = 1
                entries.insert(1, Entry("source, same backend", other.artifact, self.given))
            if measuring == "ends":
                entries = [*entries[: base + 1], entries[-1]]
        live.model = None  # measuring loads what was saved: the folder is what counts
        rows = self._measure(entries, base) if measuring != "none" else []
        result = Result(self.out, pipeline, source.uri, start.artifact, folders, live.artifact, rows)
        result.write_report()
        return result

    def _start(self, source: Source) -> _Live:
        """The source's artifact; a module in memory is saved first."""
        if source.artifact:
            source.artifact.verify()
            return _Live(source.artifact)
        assert source.module is not None
        model = in_memory(source.module, source.tokenizer)
        temporary = self.out / "00-source.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        artifact = self._save(model, temporary, None)
        final = self.out / f"00-{artifact.digest[:12]}"
        if final.exists():
            shutil.rmtree(temporary)
        else:
            temporary.rename(final)
        return _Live(Artifact.open(final))

    def _claim(self, pipeline: Pipeline, source: Source, artifact: Artifact) -> None:
        """Write run.json, or refuse a folder that holds a run on other data or another source."""
        path = self.out / RUN
        if path.is_file():
            earlier = read(path, "data", "digest", "source", "seed", "stages")
            if earlier["data"] != self.data:
                raise RunError(
                    f"{self.out}: belongs to a run on other data; choose another folder or restore the data"
                )
            if earlier["digest"] != artifact.digest:
                raise RunError(
                    f"{self.out}: belongs to a run from another model ({earlier['source']}); choose another folder"
                )
        run = {
            "source": source.uri,
            "digest": artifact.digest,
            "data": self.data,
            "seed": pipeline.seed,
            "task": self.task.kind if self.task else None,
            "stages": [{stage.method: stage.config().model_dump(mode="json")} for stage in pipeline.stages],
            "libraries": library_versions(),
        }
        if path.is_file() and any(earlier[field] != run[field] for field in ("seed", "stages")):
            # They would be shown beside this run, which they are not of.
            (self.out / MEASUREMENTS).unlink(missing_ok=True)
        write_json(path, run)

    def _stage(self, number: int, stage: Stage, parent: _Live) -> tuple[Path, _Live]:
        owned, config = stage.owned(), stage.config()
        method = owned.record
        options = config.model_dump(mode="json")
        identity = [parent.artifact.digest, owned.address, owned.version, options, self.data, self.seed, API]
        key = digest.of_json(identity)[:12]
        final = self.out / f"{number:02d}-{key}"
        name = f"{number:02d} {method.name}"
        if final.is_dir():
            self.events.emit(Event("stage_reused", name, text=final.name))
            return final, _Live(Artifact.open(final))
        temporary = self.out / f"{final.name}.tmp"
        shutil.rmtree(temporary / MODEL, ignore_errors=True)
        temporary.mkdir(exist_ok=True)
        context = Context(
            self.task,
            self.seed,
            self.device,
            temporary,
            lambda done, total, text: self.events.emit(Event("stage_progress", name, done, total, text)),
        )
        self.events.emit(Event("stage_started", name, text=f"{options}"))
        started = time.time()
        try:
            with measure.peak_memory() as memory:
                model = parent.model
                if model is None:
                    model = parent.artifact.load(self.device, self.given)
                seed_everything(self.seed)
                model = resolve(method.target)(model, config, context)
                self._save(model, temporary, parent.artifact.digest)
        except BaseException as error:
            self.events.emit(Event("stage_failed", name, text=f"{type(error).__name__}: {error}"))
            raise
        parent.model = None  # changed in place by the method: no longer what the parent's folder holds
        Record(
            method=method.name,
            distribution=owned.distribution,
            version=owned.version,
            config=options,
            seed=self.seed,
            key=key,
            parent=parent.artifact.digest,
            data=self.data,
            device=measure.device_name(self.device),
            started=started,
            seconds=time.time() - started,
            peak_memory=memory.peak,
            peak_memory_how=memory.how,
            resumed_units=context.resumed_units,
            facts=context.facts,
            charts=context.charts,
            libraries=library_versions(),
        ).write(temporary)
        shutil.rmtree(temporary / "units", ignore_errors=True)
        temporary.rename(final)
        self.events.emit(Event("stage_finished", name, text=f"{time.time() - started:.1f} s"))
        if isinstance(model, TorchModel):
            model.module.eval()  # as the next stage would find it, were it loaded from the folder
        else:
            model = None  # it may hold the name that its folder had before it was renamed: load it again
        return final, _Live(Artifact.open(final, verify=False), model)

    def _save(self, model: Any, folder: Path, parent: str | None) -> Artifact:
        root = folder / MODEL
        root.mkdir(parents=True, exist_ok=True)
        architecture = get_builder(model.builder).save(model, root)
        _open_to_others(root)
        artifact = Artifact.of(root, model.kind, model.builder, architecture, parent)
        artifact.write(folder)
        return artifact

    def _measure(self, entries: Sequence[Entry], base: int) -> list[Row]:
        """Measure, or take the figures of an earlier, complete measurement of the same models on this machine."""
        path = self.out / MEASUREMENTS
        labels = [[entry.label, entry.artifact.digest] for entry in entries]
        place = [self.device, measure.device_name(self.device), library_versions()]
        key = digest.of_json([labels, base, self.data, *place])
        if rows := read_rows(self.out, key):
            return rows
        self.events.emit(Event("stage_started", "measure"))

        def report(done: int, total: int, text: str) -> None:
            self.events.emit(Event("stage_progress", "measure", done, total, text))

        rows = compare(entries, self.task, reference=base, device=self.device, report=report)
        write_json(path, {"key": key, "rows": [row.as_dict() for row in rows]})
        self.events.emit(Event("stage_finished", "measure"))
        return rows


def in_memory(module: nn.Module, tokenizer: Any) -> TorchModel:
    """A user's module as a model.

    Its builder is the one its class names as ``planish_builder``, else the transformers builder for that library's own
    classes, else the builder that keeps the weights alone.
    """
    from planish.builders.module import storage_of

    own = "transformers" if type(module).__module__.startswith("transformers.models.") else "module"
    builder = getattr(module, "planish_builder", own)
    return TorchModel(module, builder, tokenizer, storage_of(module))


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _open_to_others(root: Path) -> None:
    """Give files the mode that the user's umask asks for; safetensors keeps what it writes to its owner."""
    mask = os.umask(0)
    os.umask(mask)
    for path in root.rglob("*"):
        if path.is_file():
            path.chmod(0o666 & ~mask)


@contextlib.contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Hold the run folder; the lock dies with the process, however it ends."""
    out.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(out / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{out}: another process is working in this run folder") from None
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    """Turn a full disk and a read-only folder into one line; finished work stays where it is."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No space left" in str(error):
            raise RunError(
                f"{out}: the disk is full; free some space and repeat the command: finished work is kept"
            ) from None
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise RunError(f"{out}: cannot be written ({error.strerror}: {error.filename})") from None
        if error.errno in (errno.EEXIST, errno.ENOTDIR):
            raise RunError(f"{out}: is not a folder") from None
        if error.errno in (errno.ENAMETOOLONG, errno.ELOOP):
            raise RunError(f"{out}: cannot be written ({error.strerror})") from None
        raise
