"""Just enough of Verilog's grammar: tokens, modules, ports and instances. Nothing is evaluated or expanded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from planish_promptv.types import Port

Kind = Literal["word", "escaped", "system", "number", "string", "directive", "mark"]

_TOKEN = re.compile(
    r"""(?P<space>\s+|//[^\n]*|/\*.*?(?:\*/|\Z))
    |(?P<string>"(?:\\.|[^"\\\n])*"?)
    |(?P<escaped>\\\S+)
    |(?P<directive>``|`"|`\\`"|`[A-Za-z_][\w$]*)
    |(?P<system>\$[\w$]+)
    |(?P<number>(?:\d[\d_]*)?\s*'[sS]?[bBoOdDhH]\s*[0-9a-fA-FxXzZ?_]+|'[01xXzZ](?!\w)
        |\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)
    |(?P<word>[A-Za-z_][\w$]*)
    |(?P<mark><<<=|>>>=|===|!==|==\?|!=\?|<<<|>>>|<<=|>>=|&&&|\*\*|<=|>=|==|!=|&&|\|\||<<|>>|->|::|\+:|-:|\+\+|--
        |[+\-*/%&|^]=|~&|~\||~\^|\^~|\.\*|.)""",
    re.VERBOSE | re.DOTALL,
)


class Token(NamedTuple):
    """One token with its place: ``start`` counts characters from 0, ``line`` from 1."""

    kind: Kind
    text: str
    start: int
    line: int


def tokens(text: str) -> list[Token]:
    """All tokens of ``text``; comments and white space are left out, a string is one token."""
    found, line = [], 1
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup
        if kind != "space":
            found.append(Token(kind, match.group(), match.start(), line))  # type: ignore[arg-type]
        line += match.group().count("\n")
    return found


class Module(NamedTuple):
    """A module definition: its name, and the tokens from ``module`` to ``endmodule``."""

    name: str
    body: Sequence[Token]


def modules(text: str) -> list[Module]:
    """The modules that ``text`` defines, in order. One without ``endmodule`` reaches to the end."""
    stream, found, start = tokens(text), [], None
    for index, token in enumerate(stream):
        if token.text in ("module", "macromodule") and token.kind == "word" and start is None:
            start = index
        elif token.text == "endmodule" and start is not None:
            found.append((start, index + 1))
            start = None
    if start is not None:
        found.append((start, len(stream)))
    return [Module(_name(stream[first:last]), stream[first:last]) for first, last in found]


def _name(body: Sequence[Token]) -> str:
    """The first word after ``module`` that is no lifetime."""
    for token in body[1:]:
        if token.text not in ("automatic", "static"):
            return token.text.lstrip("\\")
    return ""


def instances(module: Module, known: set[str] | None = None) -> Iterator[tuple[str, str]]:
    """(module name, instance name) of the instances in ``module``; ``known`` restricts the module names."""
    body, pairs = module.body, match(module.body)
    last = len(body) - 1
    for i, token in enumerate(body[2:], 2):
        if token.kind != "word" or (known is not None and token.text not in known) or token.text in KEYWORDS:
            continue
        j = i + 1
        if j < last and body[j].text == "#" and body[j + 1].text == "(":
            j = pairs[j + 1] + 1
        if j < last and body[j].kind in ("word", "escaped") and body[j].text not in KEYWORDS:
            after = body[j + 1].text
            if after == "(" or (after == "[" and body[min(pairs[j + 1] + 1, last)].text == "("):
                yield token.text, body[j].text


_BRACKETS = {"(": ")", "[": "]", "{": "}"}


def match(body: Sequence[Token]) -> list[int]:
    """For every token the index of the bracket that closes it: itself for other tokens, the last index where none does.

    One pass for all of them, because a text may consist of opening brackets.
    """
    closed_by = list(range(len(body)))
    waiting: dict[str, list[int]] = {closed: [] for closed in _BRACKETS.values()}
    for i, token in enumerate(body):
        if token.kind != "mark":
            continue
        if token.text in _BRACKETS:
            waiting[_BRACKETS[token.text]].append(i)
        elif waiting.get(token.text):
            closed_by[waiting[token.text].pop()] = i
    for left in waiting.values():
        for i in left:
            closed_by[i] = len(body) - 1
    return closed_by


def top_of(text: str) -> str:
    """The module that no other module of ``text`` instantiates; the last, where several qualify. Empty if none."""
    found = modules(text)
    names = {module.name for module in found}
    used = {name for module in found for name, _ in instances(module, names)}
    tops = [module.name for module in found if module.name not in used]
    return tops[-1] if tops else ""


def rename(text: str, names: dict[str, str]) -> str:
    """``text`` with every identifier of ``names`` replaced; comments and strings stay."""
    pieces, end = [], 0
    for token in tokens(text):
        if token.kind == "word" and token.text in names:
            pieces += [text[end : token.start], names[token.text]]
            end = token.start + len(token.text)
    return "".join(pieces) + text[end:]


def header(text: str, top: str) -> str | None:
    """The header of module ``top`` up to and including its ``;``, or None."""
    for module in modules(text):
        if module.name == top:
            for token in module.body:
                if token.text == ";":
                    return text[module.body[0].start : token.start + 1]
    return None


def ports(text: str, top: str) -> tuple[Port, ...] | None:
    """The ports of module ``top`` in order, ANSI or not; None when the module is missing or has no readable header."""
    module = next((m for m in modules(text) if m.name == top), None)
    if module is None:
        return None
    body = list(module.body)
    pairs = match(body)
    start = next((i for i, t in enumerate(body) if t.text in ("(", ";", "#")), len(body))
    if start + 1 < len(body) and body[start].text == "#":
        start = pairs[start + 1] + 1
    if start >= len(body) or body[start].text != "(":
        return ()
    end = pairs[start]
    inside = body[start + 1 : end]
    if any(t.text in _DIRECTIONS for t in inside):
        return tuple(_declarations([*inside, body[end]._replace(text=";")]))
    declared = {port.name: port for port in _declarations(body[end + 1 :])}
    names = [t.text for t in inside if t.kind in ("word", "escaped")]
    return tuple(declared[name] for name in names) if all(name in declared for name in names) else None


def _declarations(body: Sequence[Token]) -> Iterator[Port]:
    """Ports of ``input [7:0] a, b, output reg c;`` wherever such a declaration stands in ``body``."""
    direction, signed, i, pairs = "", False, 0, match(body)
    size: int | None = 1
    while i < len(body):
        text = body[i].text
        if text in _DIRECTIONS:
            direction, size, signed = text, 1, False
        elif text == ";":
            direction = ""
        elif text == "signed":
            signed = True
        elif text in ("integer", "int"):
            size, signed = 32, True
        elif direction and text == "[":
            end = pairs[i]
            size = _width(body[i + 1 : end])
            i = end
        elif direction and text == "=":  # a default value or an initial one
            while i < len(body) and body[i].text not in (",", ";"):
                i = pairs[i] + 1
            continue
        elif direction and body[i].kind in ("word", "escaped") and text not in KEYWORDS:
            following = body[i + 1].text if i + 1 < len(body) else ";"
            if following in (",", ";", "=", "["):
                yield Port(name=text, direction=direction, width=size, signed=signed)  # type: ignore[arg-type]
                if following == "[":  # an unpacked dimension behind the name
                    i = pairs[i + 1]
        i += 1


def _width(inside: Sequence[Token]) -> int | None:
    """Bits of ``[high:low]``; None unless both are plain numbers."""
    texts = [t.text for t in inside]
    if len(texts) == 3 and texts[1] == ":" and texts[0].isdigit() and texts[2].isdigit():
        return abs(int(texts[0]) - int(texts[2])) + 1
    return None


_DIRECTIONS = ("input", "output", "inout")
KEYWORDS = frozenset(
    [
        "always",
        "always_comb",
        "always_ff",
        "always_latch",
        "and",
        "assert",
        "assign",
        "automatic",
        "begin",
        "bit",
        "buf",
        "bufif0",
        "bufif1",
        "byte",
        "case",
        "casex",
        "casez",
        "cell",
        "const",
        "continue",
        "deassign",
        "default",
        "defparam",
        "disable",
        "do",
        "edge",
        "else",
        "end",
        "endcase",
        "endfunction",
        "endgenerate",
        "endinterface",
        "endmodule",
        "endpackage",
        "endprimitive",
        "endspecify",
        "endtable",
        "endtask",
        "enum",
        "event",
        "export",
        "extends",
        "final",
        "for",
        "force",
        "foreach",
        "forever",
        "fork",
        "function",
        "generate",
        "genvar",
        "if",
        "iff",
        "import",
        "initial",
        "inout",
        "input",
        "inside",
        "int",
        "integer",
        "interface",
        "join",
        "join_any",
        "join_none",
        "localparam",
        "logic",
        "longint",
        "macromodule",
        "modport",
        "module",
        "nand",
        "negedge",
        "nmos",
        "nor",
        "not",
        "notif0",
        "notif1",
        "or",
        "output",
        "package",
        "packed",
        "parameter",
        "pmos",
        "posedge",
        "primitive",
        "priority",
        "pull0",
        "pull1",
        "pulldown",
        "pullup",
        "real",
        "realtime",
        "ref",
        "reg",
        "release",
        "repeat",
        "return",
        "rtran",
        "shortint",
        "shortreal",
        "signed",
        "specify",
        "specparam",
        "static",
        "string",
        "strong0",
        "strong1",
        "struct",
        "supply0",
        "supply1",
        "table",
        "task",
        "time",
        "tran",
        "tri",
        "tri0",
        "tri1",
        "triand",
        "trior",
        "trireg",
        "type",
        "typedef",
        "union",
        "unique",
        "unsigned",
        "var",
        "vectored",
        "void",
        "wait",
        "wand",
        "weak0",
        "weak1",
        "while",
        "wire",
        "wor",
        "xnor",
        "xor",
    ]
)
