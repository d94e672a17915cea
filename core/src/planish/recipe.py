"""A pipeline as a file. The Python object and the YAML are interchangeable."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from planish.errors import ConfigError
from planish.pipeline import Pipeline, Stage
from planish.tasks import make_task

FORMAT = 1
MAX_BYTES = 1 << 20
FIELDS = ("planish", "source", "seed", "task", "stages")


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (they allow a small file to expand without bound) and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise ConfigError(f"recipe line {mark.line + 1}: YAML aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        made = super().construct_mapping(node, deep)
        if len(made) < len(node.value):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next(key for key, times in Counter(keys).items() if times > 1)
            raise ConfigError(f"recipe line {node.start_mark.line + 1}: key {twice!r} stands twice")
        return made

    def construct_yaml_int(self, node: Any) -> Any:
        """YAML 1.1 reads 2:4 as a number in base sixty (124); in a recipe it is a pattern."""
        return node.value if ":" in node.value else super().construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(yaml.SafeDumper):
    """Safe YAML that writes a value out each time it stands somewhere, because the loader refuses aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def read(path: str | Path) -> tuple[Pipeline, str | None]:
    """The pipeline in a recipe file, and the source it names. Relative paths are relative to the file.

    Raises:
        ConfigError: one line that names the field, the value and what is allowed.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"recipe {path}: larger than {MAX_BYTES} bytes")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {path}: {error}") from None
    return parse(text, path.parent)


def parse(text: str, base: Path = Path()) -> tuple[Pipeline, str | None]:
    """The pipeline in a recipe's text; see `read`."""
    try:
        data = yaml.load(text, _Loader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise ConfigError("recipe: nested too deeply") from None
    if not isinstance(data, dict):
        raise ConfigError(f"recipe: must be a mapping with the fields {', '.join(FIELDS)}")
    for name in data:
        if name not in FIELDS:
            raise ConfigError(f"recipe: unknown field {name!r} (fields: {', '.join(FIELDS)})")
    if data.get("planish", FORMAT) != FORMAT:
        raise ConfigError(f"recipe: planish = {data['planish']!r}, this version reads format {FORMAT}")
    seed = data.get("seed", 0)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise ConfigError(f"recipe: seed = {seed!r} must be a whole number from 0 to 2**63 - 1")
    stages = data.get("stages")
    if not isinstance(stages, list) or not stages:
        raise ConfigError("recipe: stages must be a list such as [{ace: {sparsity: 0.5}}, onnx]")
    source = data.get("source")
    if source is not None and (not isinstance(source, str) or not source):
        raise ConfigError(f"recipe: source = {source!r} must be text")
    with contextlib.suppress(OSError):  # a text too long for a path is none
        if source and (base / source).exists():
            source = str(base / source)
    task = data.get("task")
    if task is not None and not isinstance(task, dict):
        raise ConfigError(f"recipe: task = {task!r} must be a mapping with a kind")
    made = make_task(_rooted(task, base)) if task else None
    return Pipeline(seed, made, tuple(_stage(entry) for entry in stages)), source


def dump(pipeline: Pipeline, source: str | None = None) -> str:
    """The recipe of a pipeline.

    Raises:
        ConfigError: its task holds data in memory.
    """
    data: dict[str, Any] = {"planish": FORMAT}
    if source:
        data["source"] = source
    data["seed"] = pipeline.seed
    if pipeline.task:
        try:
            task = pipeline.task.model_dump(mode="json", exclude_unset=True)
        except Exception:  # pydantic raises its own error for tensors
            raise ConfigError("recipe: the task holds data in memory, which a file cannot name") from None
        data["task"] = {"kind": pipeline.task.kind, **task}
    data["stages"] = [{s.method: dict(s.options)} if s.options else s.method for s in pipeline.stages]
    try:
        return str(yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))
    except yaml.representer.RepresenterError as error:
        raise ConfigError(f"recipe: {error.args[-1]!r} is not text, a number, a list or a mapping") from None


def _stage(entry: Any) -> Stage:
    if isinstance(entry, str):
        return Stage(entry, {})
    if isinstance(entry, dict) and len(entry) == 1:
        (method, options), *_ = entry.items()
        if isinstance(method, str) and (options is None or isinstance(options, dict)):
            return Stage(method, options or {})
    raise ConfigError(f"recipe: stage {entry!r} must be METHOD or {{METHOD: {{OPTION: VALUE}}}}")


def _rooted(value: Any, base: Path) -> Any:
    """Every ``path`` below the task, relative to the recipe's folder."""
    if isinstance(value, dict):
        return {
            k: str(base / v) if k == "path" and isinstance(v, str) else _rooted(v, base)
            for k, v in value.items()
        }
    return value
