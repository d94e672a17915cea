"""What generated text may not contain, decided on tokens: comments and strings neither hide nor trigger anything.

The guard runs before any tool sees the text. It is not the sandbox: it refuses what would make a verdict worthless
(looking at the reference, driving the bench, printing a verdict) and what has no place in hardware (files, `include`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence

from planish_promptv.harness import verilog
from planish_promptv.harness.verilog import KEYWORDS, Token, instances, modules, tokens
from planish_promptv.types import NONCE, Bench, Diagnostic, Port

# Functions of constants and types that synthesis tools evaluate. Everything else with a dollar sign is refused.
PURE = frozenset(
    f"${name}"
    for name in [
        "bits",
        "clog2",
        "signed",
        "unsigned",
        "left",
        "right",
        "low",
        "high",
        "size",
        "increment",
        "dimensions",
        "unpacked_dimensions",
        "countones",
        "countbits",
        "onehot",
        "onehot0",
        "isunknown",
        "rtoi",
        "itor",
        "realtobits",
        "bitstoreal",
        "cast",
        "ceil",
        "floor",
        "pow",
        "sqrt",
        "ln",
        "log10",
        "exp",
    ]
)
DISPLAY = frozenset(
    f"${name}{radix}" for name in ("display", "write", "monitor", "strobe") for radix in ("", "b", "o", "h")
)
DIRECTIVES = frozenset(
    f"`{name}"
    for name in [
        "timescale",
        "default_nettype",
        "define",
        "undef",
        "undefineall",
        "ifdef",
        "ifndef",
        "elsif",
        "else",
        "endif",
        "resetall",
        "celldefine",
        "endcelldefine",
    ]
)
LONGEST = 1 << 18
"""Characters of a generated text that are looked at; a longer one is refused."""
_NAMED = (
    "`ifdef",
    "`ifndef",
    "`elsif",
    "`undef",
)  # directives followed by a name that is no part of the design
_FORBIDDEN = {
    "force": "drives signals of other modules",
    "release": "drives signals of other modules",
    "bind": "adds to other modules",
    "defparam": "changes parameters from outside",
    "program": "belongs in a testbench",
    "config": "selects other modules",
    "export": "calls foreign code",
    "alias": "joins nets both ways",
    **dict.fromkeys(
        ("tran", "tranif0", "tranif1", "rtran", "rtranif0", "rtranif1"), "drives both of its ends"
    ),
}
_DEFINES = ("module", "macromodule", "primitive", "interface", "program", "package", "class", "checker")
# What a generated bench may not call: the host's files, other programs, and whatever undoes the limits.
_BENCH_FILES = re.compile(
    r"\$(system|f(?!inish|atal|loor|ell\b).*|readmem[bh]|writemem[bh]|sreadmem[bh]|sdf_annotate|dumpports.*|save|restart"
    r"|reset|input|key|nokey|log|nolog|value\$plusargs|test\$plusargs|c)\Z"
)
_DUMP_FILE = re.compile(r'"[\w.-]+\.vcd"')


def check_design(
    text: str,
    bench: Bench | None = None,
    allow_display: bool = False,
    top: str = "",
    expected: Sequence[Port] = (),
) -> list[Diagnostic]:
    """Reasons to refuse ``text`` as a design; empty when it may be compiled.

    Args:
        text: the candidate.
        bench: what it will be simulated with; its modules may be neither instantiated nor redefined, and the names of
            its scopes may not begin a dotted name.
        allow_display: let ``$display`` and its family through.
        top, expected: the design's module and the ports it must have: one that turns an input into an output could drive
            what the reference reads.
    """
    if len(text) > LONGEST:
        message = f"{len(text)} characters, at most {LONGEST} are read"
        return [Diagnostic(file="dut.sv", code="length", message=message)]
    stream = tokens(text)
    scopes = _bench_scopes(bench) if bench else _Scopes()
    allowed = PURE | DISPLAY if allow_display else PURE
    defined = {b.text for a, b in itertools.pairwise(stream) if a.text == "`define"}
    found = []
    for i, token in enumerate(stream):
        following = stream[i + 1] if i + 1 < len(stream) else None
        if token.kind == "system" and token.text not in allowed:
            found.append(_refuse(token, "system_task", f"{token.text} is not allowed in a design"))
        elif token.kind == "directive" and token.text not in DIRECTIVES and token.text[1:] not in defined:
            found.append(_refuse(token, "directive", f"compiler directive or unknown macro {token.text}"))
        elif token.kind == "word" and token.text in _FORBIDDEN:
            found.append(_refuse(token, token.text, f"{token.text} {_FORBIDDEN[token.text]}"))
        elif token.text == "import" and following and following.kind == "string":
            found.append(_refuse(token, "dpi", "import of foreign functions"))
    found += _dotted(stream, scopes)
    found += _foreign(stream, scopes)
    found += _turned(text, top, expected)
    return sorted(found, key=lambda d: d.line)


def check_bench(text: str, top_name: str) -> list[Diagnostic]:
    """Reasons to refuse a generated bench: host access, no instance of the design, or no verdict line."""
    if len(text) > LONGEST:
        message = f"{len(text)} characters, at most {LONGEST} are read"
        return [Diagnostic(file="tb.sv", code="length", message=message)]
    stream, found = tokens(text), []
    for i, token in enumerate(stream):
        if token.kind == "system" and _BENCH_FILES.match(token.text):
            found.append(_refuse(token, "file_access", f"{token.text} is not allowed in a bench", "tb.sv"))
        elif token.text == "$dumpfile" and not _literal(stream[i + 1 : i + 4]):
            message = '$dumpfile takes a plain name such as "wave.vcd"'
            found.append(_refuse(token, "file_access", message, "tb.sv"))
        elif token.text in ("`include", "`__FILE__", "`line"):
            found.append(_refuse(token, "directive", f"{token.text} is not allowed in a bench", "tb.sv"))
        elif token.text in ("import", "export") and i + 1 < len(stream) and stream[i + 1].kind == "string":
            found.append(_refuse(token, "dpi", "import of foreign functions", "tb.sv"))
    defined = modules(text)
    if not any(token.text == top_name for token in stream) or any(m.name == top_name for m in defined):
        message = f"the bench must instantiate {top_name} and must not define it"
        found.append(Diagnostic(file="tb.sv", code="no_instance", message=message))
    if not any(token.kind == "string" and NONCE in token.text for token in stream):
        message = f'the bench prints no verdict line: "{NONCE} Mismatches: %0d in %0d samples"'
        found.append(Diagnostic(file="tb.sv", code="no_verdict_line", message=message))
    return found


def check_paths(bench: Bench) -> list[Diagnostic]:
    """Reasons to refuse a provided bench: file names in it that are absolute or climb out of the job's folder."""
    return [
        _refuse(token, "path", "file names must be relative and stay in the job's folder", "tb.sv")
        for text in (bench.text, bench.reference)
        for token in tokens(text)
        if (token.kind == "string" and re.match(r'"\s*(/[\w.-]+|~|(.*/)?\.\.(/|"))', token.text))
        or token.text in ("`include", "$system")
    ]


class _Scopes:
    """Names of a bench that a design may not touch: its modules, and its instances and modules as scopes."""

    def __init__(self, module_names: set[str] | None = None, scopes: set[str] | None = None) -> None:
        self.modules = module_names or set()
        self.scopes = (scopes or set()) | self.modules


def _bench_scopes(bench: Bench) -> _Scopes:
    defined = [*modules(bench.text), *modules(bench.reference)]
    names = {module.name for module in defined} | {bench.top}
    scopes = {instance for module in defined for _, instance in instances(module)}
    return _Scopes(names | ({bench.reference_top} if bench.reference_top else set()), scopes)


def _dotted(stream: Sequence[Token], scopes: _Scopes) -> list[Diagnostic]:
    """Dotted names that are no port connection and do not begin at something the text itself declares."""
    plain = [
        token
        for i, token in enumerate(stream)
        if token.kind != "directive" and not (i and stream[i - 1].text in _NAMED)
    ]
    declared = _declared_scopes(plain)
    found: list[Diagnostic] = []
    for i, token in enumerate(plain):
        if len(found) == _ENOUGH:
            break
        if token.text != "." or token.kind != "mark":
            continue
        if i == 0 or plain[i - 1].text in ("(", ",") or plain[i - 1].text == ".*":
            if i == 0:
                found.append(_refuse(token, "hierarchical", "a dot that belongs to no name"))
            continue
        head = _head(plain, i)
        if head is None or head not in declared or head in scopes.scopes:
            name = (head or plain[i - 1].text) + "." + (plain[i + 1].text if i + 1 < len(plain) else "")
            found.append(_refuse(token, "hierarchical", f"hierarchical reference {name}"))
    return found


def _head(stream: Sequence[Token], dot: int) -> str | None:
    """The first name of the dotted path whose dot stands at ``dot``: ``a`` for ``a[i].b.c``."""
    i, depth = dot - 1, 0
    for i in range(dot - 1, max(dot - _FAR, -1), -1):
        token = stream[i]
        depth += (token.text == "]") - (token.text == "[")
        if depth or token.text == "[":
            continue
        if token.kind in ("word", "escaped"):
            if i < 2 or stream[i - 1].text != "." or stream[i - 2].text in ("(", ","):
                return token.text.lstrip("\\")
        elif token.text not in (".", "]"):
            return None
    return None


_FAR = 200
"""Tokens within which a path or a list of names must end; a longer one is refused or cut, never searched for ever."""

_ENOUGH = 100
"""Hierarchical names that are told; after so many nobody reads on, and looking for their heads takes time."""


def _declared_scopes(stream: Sequence[Token]) -> set[str]:
    """Names that may begin a dotted name: generate labels, variables of user types, interfaces and their instances."""
    found: set[str] = set()
    types: set[str] = set()
    pairs = verilog.match(stream)
    for i, token in enumerate(stream):
        following = stream[i + 1] if i + 1 < len(stream) else token
        if token.text == "begin" and following.text == ":" and i + 2 < len(stream):
            found.add(stream[i + 2].text)
        elif token.text == "interface" and following.kind == "word":
            types.add(following.text)
            found.add(following.text)  # ``bus.master port`` in a header
        elif token.text in ("struct", "union", "enum"):
            brace = next((j for j in range(i, min(i + _FAR, len(stream))) if stream[j].text == "{"), None)
            if brace is not None:
                typedef = i > 0 and stream[i - 1].text == "typedef"
                (types if typedef else found).update(_list(stream, pairs[brace] + 1, pairs))
        elif token.kind == "word" and token.text in types:
            found.update(_list(stream, i + 1, pairs))
    return found


def _list(stream: Sequence[Token], index: int, pairs: Sequence[int]) -> list[str]:
    """The names of ``[1:0] a, b[3:0] = …, c`` that begins at ``index``."""
    names: list[str] = []
    for _ in range(_FAR):
        if index >= len(stream):
            break
        token = stream[index]
        if token.text in ("[", "(") and token.kind == "mark":
            index = pairs[index]
        elif token.text == ".":  # ``bus.master port``
            index += 1
        elif token.text == "=":
            end = min(index + _FAR, len(stream) - 1)
            while index < end and stream[index + 1].text not in (",", ";", ")"):
                index = pairs[index + 1]
        elif token.kind in ("word", "escaped") and token.text not in KEYWORDS:
            names.append(token.text)
        elif token.text not in (",", "#"):
            break
        index += 1
    return names


def _foreign(stream: Sequence[Token], scopes: _Scopes) -> list[Diagnostic]:
    """Instances and redefinitions of the bench's modules, and ``disable`` of a block that the text does not contain."""
    found = []
    blocks = _labels(stream)
    for i, token in enumerate(stream[:-1]):
        name, following = token.text.lstrip("\\"), stream[i + 1]
        if token.text in _DEFINES and token.kind == "word":
            defined = stream[i + 2] if following.text in ("automatic", "static") else following
            if defined.text.lstrip("\\") in scopes.modules:
                found.append(_refuse(token, "redefinition", f"{defined.text} belongs to the bench"))
        elif token.text == "disable" and following.text != "fork" and following.text not in blocks:
            message = f"disable {following.text}: no block of this design"
            found.append(_refuse(token, "disable", message))
        elif (
            name in scopes.modules
            and token.kind in ("word", "escaped")
            and stream[i - 1].text not in _DEFINES
            and (following.text == "#" or following.kind in ("word", "escaped"))
        ):
            found.append(_refuse(token, "instance", f"instance of {name}, which belongs to the bench"))
    return found


def _labels(stream: Sequence[Token]) -> set[str]:
    """Names of blocks, tasks and functions."""
    found = {
        c.text
        for a, b, c in zip(stream, stream[1:], stream[2:], strict=False)
        if b.text == ":" and a.text in ("begin", "fork")
    }
    return found | set(callables(stream))


def callables(stream: Sequence[Token]) -> Iterator[str]:
    """Names of the tasks and functions that are defined."""
    for i, token in enumerate(stream):
        if token.text in ("task", "function") and token.kind == "word":
            name = ""
            for following in stream[i + 1 : i + 20]:
                if following.text in ("(", ";"):
                    break
                if following.kind in ("word", "escaped") and following.text not in KEYWORDS:
                    name = following.text
            if name:
                yield name


def _turned(text: str, top: str, expected: Sequence[Port]) -> list[Diagnostic]:
    """Ports of the top whose direction is not the one asked for."""
    wanted = {port.name: port.direction for port in expected}
    return [
        Diagnostic(
            file="dut.sv",
            code="port_direction",
            message=f"port {port.name} must be an {wanted[port.name]}, not an {port.direction}",
        )
        for port in verilog.ports(text, top) or ()
        if wanted.get(port.name, port.direction) != port.direction
    ]


def hidden_names(text: str) -> set[str]:
    """Names of a bench that its run may call otherwise, so that no design can reach what they stand for.

    Tasks, functions, blocks and instances: Verilog finds a task or a block by its bare name from below, without any dot.
    Names that also stand behind a dot stay as they are: they may be ports.
    """
    stream = tokens(text)
    behind = {b.text for a, b in itertools.pairwise(stream) if a.text == "."}
    inside = {instance for module in modules(text) for _, instance in instances(module)}
    return (
        {name for name in _labels(stream) | inside if not name.startswith("\\")}
        - behind
        - {m.name for m in modules(text)}
    )


def _literal(arguments: Sequence[Token]) -> bool:
    texts = [token.text for token in arguments]
    return len(texts) == 3 and texts[0] == "(" and texts[2] == ")" and bool(_DUMP_FILE.fullmatch(texts[1]))


def _refuse(token: Token, code: str, message: str, file: str = "dut.sv") -> Diagnostic:
    return Diagnostic(file=file, line=token.line, code=code, message=message)
