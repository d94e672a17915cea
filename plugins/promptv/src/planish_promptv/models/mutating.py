"""A model made of mutants: it makes, sees and mends mistakes with known probabilities, so that pass@k has a closed form.

It answers from what stands in the prompt and draws from the request's seed, so it keeps no state, and what it says does
not depend on the order of requests. How well each mode does with it is an assumption of its numbers, not a finding about
language models: it shows that advice flows where it should and that estimates hit known values.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from pydantic import Field

from planish.errors import DataError
from planish_promptv.agents.extract import advice as read_advice
from planish_promptv.harness.mutants import mutants
from planish_promptv.models.protocol import Reply
from planish_promptv.models.scripted import Scripted, role_of
from planish_promptv.types import Finding, Record, Task

_FENCE = re.compile(r"```verilog\n(.*?)\n?```", re.DOTALL)
_STEPS = {
    "coder": "Write the module",
    "bencher": "Write the testbench",
    "teacher": "Check your module",
    "learner_code": "Correct the module",
    "learner_bench": "Correct the testbench",
}
"""How the single agent's prompts are told apart."""


class Skill(Record):
    """The probabilities.

    Attributes:
        right_first: the coder's draft is right. bugs: mistakes in a draft that is not.
        sees: a review finds a mistake; otherwise it gives advice that exchanges one mistake for another.
        overrules: the prosecutor puts wrong advice right.
        tires: factor on ``sees`` for each earlier review in the same conversation; only the single agent has any.
    """

    right_first: float = Field(0.3, ge=0, le=1)
    bugs: int = Field(1, ge=1, le=8)
    sees: float = Field(0.5, ge=0, le=1)
    overrules: float = Field(0.5, ge=0, le=1)
    tires: float = Field(0.5, ge=0, le=1)

    def success(self, mode: str, rounds: int, attempts: int) -> float:
        """Probability that a sample succeeds, for drafts of one bug and drafts that are simulated first."""
        miss = 1 - self.right_first
        for number in range(rounds):
            seen = self.sees * self.tires**number if mode == "single_agent" else self.sees
            if mode == "coopetitive":
                seen += (1 - seen) * self.overrules
            miss *= 1 - seen
        return 1 - miss**attempts


class MutatingModel:
    """Answers chat requests about ``tasks``.

    Args:
        wrong: task id -> wrong versions of its reference, each with one line changed, in a fixed order; more than
            the rounds of an attempt, so that no mistake comes back within it.
        benches: task id -> a testbench for the bencher to answer with.

    Raises:
        DataError: a task without reference, or a mutant that changes more or less than one line.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        wrong: Mapping[str, Sequence[str]],
        skill: Skill | None = None,
        benches: Mapping[str, str] | None = None,
    ) -> None:
        self.skill = skill or Skill()
        self.tasks = sorted(tasks, key=lambda task: -len(task.description))
        self.wrong = {name: list(texts) for name, texts in wrong.items()}
        self.benches = dict(benches or {})
        for task in tasks:
            if not task.reference or not self.wrong.get(task.id):
                raise DataError(f"task {task.id!r}: the mutating model needs a reference and mutants of it")
            for text in self.wrong[task.id]:
                if len(_changes(task.reference, text)) != 1:
                    raise DataError(f"task {task.id!r}: a mutant must change exactly one line")

    def answer(self, request: dict[str, Any]) -> Scripted:
        """The answer to the body of a chat request."""
        messages = request["messages"]
        role, last = role_of(messages[0]["content"]), messages[-1]["content"]
        earlier = 0
        if role == "single":
            role = next(name for name, phrase in _STEPS.items() if phrase in last)
            earlier = sum(_STEPS["teacher"] in message["content"] for message in messages[:-1])
        text = "\n".join(message["content"] for message in messages)
        task = next((task for task in self.tasks if task.description.strip() in text), None)
        if task is None:
            return Scripted(
                status=404, body='{"error": {"message": "the mutating model knows no such task"}}'
            )
        rng = random.Random(f"{request.get('seed')}/{role}")
        if role == "coder":
            return Scripted(code=self._draft(task, rng))
        if role in ("bencher", "learner_bench"):
            return Scripted(code=self.benches.get(task.id, "module tb; endmodule"))
        code = self._code(task, messages)
        if role == "learner_code":
            return Scripted(code=_apply(code, _findings(last)))
        if role == "prosecutor":
            return self._prosecute(task, code, last, rng)
        sees = rng.random() < self.skill.sees * self.skill.tires**earlier
        return self._advise(self._right(task, code) if sees else self._wrong(task, code))

    def _draft(self, task: Task, rng: random.Random) -> str:
        assert task.reference is not None
        if rng.random() < self.skill.right_first:
            return task.reference
        changes: dict[int, str] = {}
        for text in rng.sample(self.wrong[task.id], len(self.wrong[task.id])):
            if len(changes) < self.skill.bugs:
                changes = {**_changes(task.reference, text), **changes}
        return _rewrite(task.reference, changes)

    def _right(self, task: Task, code: str) -> dict[int, str]:
        """The line that mends the first mistake of ``code``; nothing where there is none."""
        assert task.reference is not None
        return dict(list(_changes(code, task.reference).items())[:1])

    def _wrong(self, task: Task, code: str) -> dict[int, str]:
        """Lines that turn ``code`` into the next mutant: one mistake mended, another one made."""
        assert task.reference is not None
        known = self.wrong[task.id]
        clean = [_normal(text) for text in known]
        number = clean.index(_normal(code)) + 1 if _normal(code) in clean else 0
        return _changes(code, known[number % len(known)])

    def _prosecute(self, task: Task, code: str, prompt: str, rng: random.Random) -> Scripted:
        assert task.reference is not None
        proposal = read_advice(Reply(text=prompt.partition("# Proposal")[2]))
        right = self._right(task, code)
        mended = _normal(_apply(code, proposal.code_advice)) == _normal(_rewrite(code, right))
        if not mended and rng.random() < self.skill.overrules:
            return self._advise(right)
        return Scripted(text=proposal.model_dump_json(exclude={"raw"}))

    def _advise(self, changes: dict[int, str]) -> Scripted:
        findings = [
            {"where": f"line {number}", "problem": "this line is wrong", "fix": json.dumps(line)}
            for number, line in changes.items()
        ]
        verdict = "code_wrong" if findings else "none"
        return Scripted.model_validate(
            {"json": {"verdict": verdict, "code_advice": findings, "testbench_advice": []}}
        )

    def _code(self, task: Task, messages: Sequence[Mapping[str, str]]) -> str:
        """The code that a prompt is about: the last block with the module, line numbers removed."""
        for message in reversed(messages):
            for block in reversed(_FENCE.findall(message["content"])):
                plain = re.sub(r"^ *\d+\| ?", "", block, flags=re.MULTILINE)
                if re.search(rf"\bmodule\s+{re.escape(task.top_name)}\b.*endmodule", plain, re.DOTALL):
                    return plain
        return ""


async def caught_mutants(
    tasks: Sequence[Task], simulator: Any, wanted: int = 5, fewest: int = 4
) -> dict[str, list[str]]:
    """Mutants of each task's reference that its own bench catches; tasks with fewer than ``fewest`` are left out."""
    found: dict[str, list[str]] = {}
    for task in tasks:
        if task.reference is None or not (await simulator.simulate(task, task.reference)).passed:
            continue
        caught: list[str] = []
        for mutant in mutants(task):
            if len(caught) < wanted and not (await simulator.simulate(task, mutant.text)).passed:
                caught.append(mutant.text)
        if len(caught) >= fewest:
            found[task.id] = caught
    return found


def _findings(prompt: str) -> tuple[Finding, ...]:
    """The findings in a learner's prompt, as `prompts.listed` writes them."""
    pattern = re.compile(r"^\d+\. (line \d+): .*\n   Fix: (\".*\")$", re.MULTILINE)
    return tuple(Finding(where=where, fix=fix) for where, fix in pattern.findall(prompt))


def _apply(code: str, findings: Sequence[Finding]) -> str:
    changes = {
        int(f.where.removeprefix("line ")): json.loads(f.fix) for f in findings if f.fix.startswith('"')
    }
    return _rewrite(code, changes)


def _rewrite(code: str, changes: Mapping[int, str]) -> str:
    lines = code.strip("\n").splitlines()
    for number, line in changes.items():
        lines += [""] * (number - len(lines))
        lines[number - 1] = line
    return "\n".join(lines) + "\n"


def _changes(old: str, new: str) -> dict[int, str]:
    """Line number -> new line, where two texts with as many lines differ."""
    pairs = zip_longest(old.strip("\n").splitlines(), new.strip("\n").splitlines(), fillvalue="")
    return {n: b for n, (a, b) in enumerate(pairs, 1) if a.rstrip() != b.rstrip()}


def _normal(code: str) -> str:
    return "\n".join(line.rstrip() for line in code.strip().splitlines())
