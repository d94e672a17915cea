"""What is read out of replies, and what is put into prompts."""

from __future__ import annotations

import contextlib
import json

import promptv_designs as designs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planish.errors import ConfigError
from planish_promptv.agents.extract import FormatError, _blank, advice, extract
from planish_promptv.agents.prompts import FIELDS, TEMPLATES, describe, load_pack
from planish_promptv.models.protocol import Reply

GOOD = designs.GOOD
BODY = GOOD.partition("\n")[2]


def code(text: str, finish: str = "stop", header: str | None = None) -> str:
    return extract(Reply(text=text, finish_reason=finish), "counter", header)


@pytest.mark.parametrize(
    "text",
    [
        f"Here:\n```verilog\n{GOOD}```\nDone.",
        f"```SystemVerilog\n{GOOD}\n```",
        f"```\n{GOOD}```",
        f"The module counter is:\n\n{GOOD}\nIt counts.",
        f"```python\nprint('module counter')\n```\n```sv\n{GOOD}```",
        f"```verilog\nmodule other(input a); endmodule\n```\n```v\n{GOOD}```",
        f"// module counter(; in a comment\n{GOOD}",
        f"```verilog\n{GOOD}",
    ],
    ids=[
        "tagged",
        "other tag",
        "untagged",
        "bare",
        "among others",
        "wrong module first",
        "comment",
        "fence not closed",
    ],
)
def test_code_is_found(text: str) -> None:
    assert code(text).strip().endswith(GOOD.strip())


def test_comments_and_strings_are_blanked_in_one_pass() -> None:
    assert _blank('a "b \\" c" d // "e') == "a          d      "
    unclosed = '"' + '\\"' * 50_000 + "\n"
    assert _blank(unclosed) == unclosed


def test_a_tagged_block_wins_over_an_untagged_one() -> None:
    assert code(f"```\n{designs.WRONG_EDGE}```\n```verilog\n{GOOD}```") == GOOD


def test_helpers_are_kept_and_of_two_versions_the_longest() -> None:
    helper = "module helper(input a, output b); assign b = a; endmodule"
    assert helper in code(f"{helper}\n{GOOD}")
    short = "module counter(input clk); endmodule"
    found = code(f"First try:\n{short}\nBetter:\n{GOOD}")
    assert found == GOOD


def test_header_is_put_in_front_where_the_reply_only_continues_it() -> None:
    assert code(f"```verilog\n{BODY}```", header=designs.HEADER) == GOOD
    assert code(BODY, header=designs.HEADER) == GOOD
    assert code(GOOD, header=designs.HEADER) == GOOD


def test_a_misspelt_endmodule_in_a_block_is_for_the_compiler() -> None:
    assert "endmodul\n" in code(f"```verilog\n{designs.TYPO}```")


@pytest.mark.parametrize(
    ("text", "finish", "defect"),
    [
        ("", "stop", "empty"),
        ("   \n", "stop", "empty"),
        (GOOD, "length", "too long"),
        ("```verilog\nmodule counter(input clk", "stop", "cut off"),
        ("module counter(input clk);\n assign", "stop", "no endmodule"),
        ("module other(input a); endmodule", "stop", "no module named counter"),
        ('"module counter(a); endmodule"', "stop", "no module named counter"),
        ("I cannot do that.", "content_filter", "no module named counter"),
    ],
)
def test_unusable_replies_name_their_defect(text: str, finish: str, defect: str) -> None:
    with pytest.raises(FormatError, match=defect):
        code(text, finish)


@settings(deadline=None)
@given(st.text(max_size=400))
def test_any_text_ends_in_code_or_a_format_error(text: str) -> None:
    for reader in (lambda reply: extract(reply, "counter", designs.HEADER), advice):
        with contextlib.suppress(FormatError):
            assert reader(Reply(text=text)) is not None


VALUE = designs.advice("line 3 is wrong", "")


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(VALUE),
        f"Sure!\n```json\n{json.dumps(VALUE, indent=2)}\n```",
        f"Let {{x}} be.\n{json.dumps(VALUE)} trailing",
        json.dumps({"verdict": "code_wrong", "code_advice": "line 3 is wrong", "testbench_advice": None}),
        json.dumps({"verdict": "none", "code_advice": ["line 3 is wrong"]}),
        "CODE:\n- line 3 is wrong\nTESTBENCH:\nnone",
        "## Code:\nnothing here\n".replace("nothing here", "1. line 3 is wrong").replace("Code", "CODE")
        + "**TESTBENCH:** \nno problems found",
    ],
)
def test_advice_is_read(text: str) -> None:
    found = advice(Reply(text=text))
    assert found.verdict == "code_wrong", "what is listed decides, not what is claimed"
    assert "line 3 is wrong" in found.code_advice[0].problem
    assert not found.testbench_advice
    assert found.raw == text


def test_advice_is_never_run() -> None:
    with pytest.raises(FormatError):
        advice(Reply(text="__import__('os').system('true')"))


def test_every_prompt_repeats_the_description_and_values_are_not_templates() -> None:
    pack = load_pack("promptv-1")
    assert len(pack.sha256) == 64
    values = dict.fromkeys(FIELDS, "{{top}}") | {"description": "count {{code}}"}
    for template, sections in TEMPLATES.items():
        for section in sections:
            system, user = pack.render(template, section, values)
            assert system.startswith("Role: ")
            if template != "single":
                assert "count {{code}}" in user, "a value is put in as it is"


def test_bencher_is_told_the_verdict_line() -> None:
    system, _ = load_pack("promptv-1").render("bencher", "user", describe(designs.TASK))
    assert '$display("@NONCE@ Mismatches: %0d in %0d samples", errors, samples);' in system


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("coder.md", "Role: coder\n=== user ===\n{{descripton}}", "uses"),
        ("coder.md", "Role: coder", "has sections"),
        ("teacher.md", None, "No such file"),
        ("pack.toml", "name =", "prompt pack"),
    ],
)
def test_packs_are_checked(tmp_path: object, name: str, change: str | None, message: str) -> None:
    import shutil
    from pathlib import Path

    from planish_promptv.agents.prompts import PACKS

    folder = Path(str(tmp_path)) / "pack"
    shutil.copytree(PACKS / "promptv-1", folder)
    original = load_pack(str(folder)).sha256
    assert original == load_pack("promptv-1").sha256
    if change is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(change)
    with pytest.raises(ConfigError, match=message):
        load_pack(str(folder))
    with pytest.raises(ConfigError, match="neither a folder nor one of promptv-1"):
        load_pack("nowhere")
