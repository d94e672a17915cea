"""Prompt packs: templates as data, versioned and hashed, and the text that fills them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from planish import digest
from planish.errors import ConfigError
from planish_promptv.types import Advice, Finding, Task

PACKS = Path(__file__).resolve().parents[1] / "packs"
TEMPLATES = {
    "coder": {"user"},
    "bencher": {"user"},
    "teacher": {"user"},
    "research": {"user"},
    "prosecutor": {"user"},
    "learner_code": {"user"},
    "learner_bench": {"user"},
    "single": {"coder", "bencher", "teacher", "learner_code", "learner_bench"},
}
"""Template files, and the sections that each has after its system prompt."""

FIELDS = frozenset(
    [
        "description",
        "header",
        "note",
        "top",
        "language",
        "code",
        "bench",
        "code_numbered",
        "bench_numbered",
        "bench_note",
        "simulation",
        "advice",
        "defect",
    ]
)
LANGUAGES = {"verilog2001": "Verilog-2001", "sv2012": "SystemVerilog (IEEE 1800-2012)"}
_SECTION = re.compile(r"^=== (\w+) ===\n", re.MULTILINE)
_FIELD = re.compile(r"\{\{(\w+)\}\}")


@dataclass(frozen=True, slots=True)
class PromptPack:
    """A set of templates.

    Attributes:
        sha256: digest of every file, so that a report says exactly what was asked.
        system: template name -> system prompt. user: (template name, section) -> user prompt.
    """

    name: str
    version: str
    sha256: str
    system: Mapping[str, str]
    user: Mapping[tuple[str, str], str]

    @classmethod
    def read(cls, folder: Path) -> PromptPack:
        """Read and check a folder of templates.

        Raises:
            ConfigError: a file or section is missing, or a template uses a field that does not exist.
        """
        system: dict[str, str] = {}
        user: dict[tuple[str, str], str] = {}
        files: dict[str, str] = {}
        try:
            about = tomllib.loads((folder / "pack.toml").read_text(encoding="utf-8"))
            name, version = str(about["name"]), str(about["version"])
            for template, wanted in TEMPLATES.items():
                text = (folder / f"{template}.md").read_text(encoding="utf-8")
                files[template] = digest.of_bytes(text.encode())
                system[template], *rest = _SECTION.split(text)
                sections = dict(zip(rest[::2], rest[1::2], strict=True))
                if set(sections) != wanted:
                    raise ConfigError(
                        f"prompt pack {str(folder)!r}: {template}.md has sections {sorted(sections)}, needs {sorted(wanted)}"
                    )
                user.update({(template, section): body for section, body in sections.items()})
                if unknown := set(_FIELD.findall(text)) - FIELDS:
                    raise ConfigError(
                        f"prompt pack {str(folder)!r}: {template}.md uses {sorted(unknown)}; fields: {', '.join(sorted(FIELDS))}"
                    )
        except (OSError, UnicodeDecodeError, KeyError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"prompt pack {str(folder)!r}: {error}") from None
        files["pack"] = digest.of_json([name, version])
        return cls(name, version, digest.of_files(files), system, user)

    def render(self, template: str, section: str, values: Mapping[str, str]) -> tuple[str, str]:
        """System and user prompt; a value is never searched for fields again."""

        def fill(match: re.Match[str]) -> str:
            return values.get(match[1], "")

        system = _FIELD.sub(fill, self.system[template]).strip()
        return system, _FIELD.sub(fill, self.user[template, section]).strip()


def load_pack(name: str) -> PromptPack:
    """The pack of that name: one that ships here, one that a plugin registers, or a folder.

    Raises:
        ConfigError: there is none.
    """
    from planish_promptv.hooks import prompt_pack

    if re.fullmatch(r"[\w-]+", name) and (PACKS / name / "pack.toml").is_file():
        return PromptPack.read(PACKS / name)
    folder = prompt_pack(name) or Path(name)
    if not folder.is_dir():
        shipped = ", ".join(sorted(path.name for path in PACKS.iterdir() if (path / "pack.toml").is_file()))
        raise ConfigError(f"prompt_pack = {name!r}: neither a folder nor one of {shipped}")
    return PromptPack.read(folder)


def describe(task: Task, note: str = "") -> dict[str, str]:
    """The fields that every prompt of a task has in common."""
    header = f"# Header\n\n{fenced(task.header)}\n\n" if task.header else ""
    return {
        "description": task.description.strip(),
        "header": header,
        "note": f"{note.strip()}\n\n" if note.strip() else "",
        "top": task.top_name,
        "language": LANGUAGES[task.language],
    }


def fenced(code: str) -> str:
    """Code in a fenced block."""
    return f"```verilog\n{code.strip()}\n```"


def numbered(code: str) -> str:
    """Code in a fenced block, every line with its number."""
    lines = code.rstrip().splitlines()
    width = len(str(len(lines)))
    return "```verilog\n" + "\n".join(f"{n:{width}d}| {line}" for n, line in enumerate(lines, 1)) + "\n```"


def listed(findings: tuple[Finding, ...]) -> str:
    """Advice as a numbered list."""
    lines = []
    for number, finding in enumerate(findings, 1):
        where = f"{finding.where}: " if finding.where else ""
        fix = f"\n   Fix: {finding.fix}" if finding.fix else ""
        lines.append(f"{number}. {where}{finding.problem}{fix}")
    return "\n".join(lines)


def as_json(advice: Advice) -> str:
    """Advice as the JSON that it came in."""
    return advice.model_dump_json(exclude={"raw"}, indent=1)
