"""The loop on real benchmark tasks: formats of all five sets, and what never reaches a prompt."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest

from planish_promptv.agents.candidate import Candidate
from planish_promptv.agents.prompts import TEMPLATES, load_pack
from planish_promptv.agents.showing import shown, simulator_text
from planish_promptv.config import EvaluationConfig
from planish_promptv.evaluate.run import evaluate
from planish_promptv.harness import BENCHMARKS, load_benchmark
from planish_promptv.models.protocol import Reply, Request
from planish_promptv.models.scripted import ScriptedProvider
from planish_promptv.types import Artifact, SimResult, Stage, Status, Task


def squeezed(text: str) -> str:
    return re.sub(r"\s+", "", text)


class Knowing(ScriptedProvider):
    """Answers with the reference, as a whole module or as what follows the header."""

    def __init__(self, tasks: list[Task], body_only: bool) -> None:
        super().__init__(None, "knowing")
        self.tasks = {task.id: task for task in tasks}
        self.body_only = body_only

    async def complete(self, request: Request) -> Reply:
        task = self.tasks[request.task]
        text = str(task.reference)
        if self.body_only and task.header and squeezed(text).startswith(squeezed(task.header)):
            text = text[text.index(");") + 2 :]
        return Reply(text=f"```verilog\n{text}\n```")


@pytest.mark.parametrize("name", BENCHMARKS)
def test_references_pass_through_the_loop_and_the_score(
    name: str, verilog_data: Path, simulator: Any, tmp_path: Path
) -> None:
    sound = [
        t for t in load_benchmark(name) if not t.excluded and t.golden.get(11, Status.PASS) is Status.PASS
    ]
    tasks = sorted(sound, key=lambda task: len(str(task.reference)))[5:8]
    config = EvaluationConfig(provider="scripted", bench_source="provided", samples=2, k=(1,), max_restarts=0)
    report = asyncio.run(
        evaluate(
            name, config, tmp_path, tasks=tasks, provider=Knowing(tasks, "v1" in name), simulator=simulator
        )
    )
    assert report.passed == report.accepted == report.samples == 6
    assert report.calls == 6


@pytest.mark.parametrize("name", BENCHMARKS)
def test_no_prompt_holds_a_reference(name: str, verilog_data: Path) -> None:
    pack = load_pack("promptv-1")
    code = Artifact(kind="code", text="module wrong; endmodule\n", author="coder")
    sim = SimResult(stage=Stage.COMPILE, status=Status.SYNTAX_ERROR)
    told = simulator_text(Candidate(code, None, sim, None, 0, 0), [], 4000)
    for task in load_benchmark(name):
        body = squeezed(str(task.reference)).partition(");")[2]
        if len(body) < 60:
            continue  # so short that a description may spell it out
        values = {**shown(task, code, None), "simulation": told, "advice": "", "defect": ""}
        for template, sections in TEMPLATES.items():
            for section in sections:
                prompt = squeezed("".join(pack.render(template, section, values)))
                assert body not in prompt, (task.id, template)
