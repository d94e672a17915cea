"""The conformance kit: a sound method passes, each faulty one fails the check that is there for its fault."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

from planish import weights
from planish.config import MethodConfig
from planish.errors import PlanishError
from planish_sdk.testing import MethodSuite, character_tokenizer, fields, files, tiny_model, tiny_task
from planish_sdk.testing.command import check_package
from planish_sdk.testing.material import CHARACTERS, SPECIAL
from planish_sdk.testing.processes import processes

SAMPLE = Path(__file__).parent / "sample"
RUNNER = """
import json, pathlib, sys, pytest
from planish_sdk.testing.session import Listing
listing = Listing()
pytest.main([*sys.argv[2:], "-p", "no:cacheprovider", "-p", "no:terminal"], plugins=[listing])
pathlib.Path(sys.argv[1]).write_text(json.dumps(listing.checks))
"""

# (suite, check) -> what the failure says
CAUGHT = {
    ("noop", "test_something_changed[llama]"): "silent no-op",
    ("timid", "test_amount_is_as_asked[llama]"): "asked for 0.5, measured 0.25",
    ("unseeded", "test_same_seed_same_digest"): "in a new process",
    ("litters", "test_writes_only_its_folder"): "left-over-",
    ("homesick", "test_writes_only_its_folder"): ".cache/sample/scores.json",
    ("vandal", "test_writes_only_its_folder"): "written: /var/tmp/planish-sample-",
    ("pickles", "test_no_pickle"): "scores.json (its member",
    ("carries-nan", "test_nan_is_refused"): "went through without a word",
    ("forgetful", "test_killed_inside_stage"): "no unit was saved",
    ("misremembers", "test_killed_inside_stage"): "gives another digest",
    ("volatile", "test_reload_in_new_process[llama]"): "differs from the live model",
    ("unties", "test_tied_weights_stay_tied[llama-tied]"): "no longer shares",
    ("overflows", "test_result_is_finite[llama]"): "NaN or infinity",
    ("stateful", "test_killed_between_stages"): "from the saved model than from the live one",
    ("crashes", "test_something_changed[llama]"): "out of luck",
    ("crashes", "test_no_pickle"): "a new process ended with code 1",
    ("speechless", "test_reload_in_new_process[llama]"): "the tokenizer of llama is lost",
    ("anonymous", "test_something_changed[llama]"): "does not say what runs it: runtime = None",
    ("wanders", "test_leaves_the_process_as_it_was[llama]"): "left altered: working directory: ",
    ("unchecked", "test_no_matching_layer_is_refused"): "the record has no check",
    ("mislabelled", "test_something_changed[llama]"): "promises kind 'other', the result is 'torch'",
    ("unpublished", "test_record_is_complete"): "names no paper",
    (
        "undescribed",
        "test_config_fields_are_described",
    ): "Undescribed.sparsity: has no description; Undescribed.layers",
    ("lenient", "test_unknown_option_is_refused"): "DID NOT RAISE",
    ("lenient", "test_record_is_complete"): "does not derive from MethodConfig",
    ("heavy", "test_entry_module_is_light"): "'planish_sample.heavy:HeavyConfig', imports torch",
    ("values", "test_kernels"): "values differ for [[1, 5]]",
    ("gradients", "test_kernels"): "gradients of argument 0 differ for [[1, 1]]",
}
WHOLE = ("Test_sound", "TestReasons", "Test_kernel::test_kernels")
FAMILIES = ("test_amount_is_as_asked", "test_reload_in_new_process")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that works like site-packages with the sample plugin in it."""
    site = tmp_path_factory.mktemp("site")
    shutil.copytree(SAMPLE, site, dirs_exist_ok=True)
    info = site / "planish_sample-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: planish-sample\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[planish.plugins]\nsample = planish_sample\n")
    return site


@pytest.fixture(scope="module")
def environment(installed: Path) -> dict[str, str]:
    paths = [str(installed), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTEST_ADDOPTS": ""}


@pytest.fixture(scope="module")
def outcomes(
    installed: Path, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], tuple[str, str]]:
    """(suite, check) -> (outcome, reason) of all checks that are asked for below, from one process."""
    folder = tmp_path_factory.mktemp("outcomes")
    file = installed / "suites.py"
    checks = [f"Test_{suite}::{check}" for suite, check in CAUGHT]
    checks += [*WHOLE, *(f"Test_families::{check}" for check in FAMILIES)]
    settings = folder / "pytest.ini"
    settings.write_text("[pytest]\npython_files = suites.py\n")
    places = ["-c", str(settings), f"--rootdir={installed}", f"--basetemp={folder / 'work'}"]
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            RUNNER,
            str(folder / "checks.json"),
            *places,
            *(f"{file}::{c}" for c in checks),
        ],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (folder / "checks.json").is_file(), done.stderr
    found = {}
    for check in json.loads((folder / "checks.json").read_text()):
        suite, _, name = check["name"].partition(": ")
        found[suite.removeprefix("Test_"), name] = check["outcome"], check["reason"]
    return found


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(("suite", "check"), CAUGHT, ids=lambda value: value)
def test_a_fault_is_caught(suite: str, check: str, outcomes: dict[tuple[str, str], tuple[str, str]]) -> None:
    outcome, reason = outcomes[suite, check]
    assert outcome == "failed"
    assert CAUGHT[suite, check] in reason


@pytest.mark.model
@pytest.mark.slow
def test_a_sound_method_passes(outcomes: dict[tuple[str, str], tuple[str, str]]) -> None:
    own = {check: value for (suite, check), value in outcomes.items() if suite in ("sound", "families")}
    assert not {check: value for check, value in own.items() if value[0] == "failed"}
    assert sum(outcome == "passed" for outcome, _ in own.values()) >= 25
    assert outcomes["kernel", "test_kernels"] == ("passed", "")
    assert own["test_reload_in_new_process[mixtral]"] == ("passed", "")
    told = {check for check, (outcome, reason) in own.items() if outcome == "skipped" and not reason}
    assert not told, "skipped without a reason"


@pytest.mark.model
@pytest.mark.slow
def test_expected_failures_are_strict(outcomes: dict[tuple[str, str], tuple[str, str]]) -> None:
    for model in ("llama", "llama-tied"):
        outcome = outcomes["TestReasons", f"test_something_changed[{model}]"]
        assert outcome == ("expected failure", "does nothing on purpose")
    outcome, reason = outcomes["TestReasons", "test_reload_in_new_process[llama]"]
    assert outcome == "failed"
    assert "XPASS(strict)" in reason
    assert outcomes["TestReasons", "test_reload_in_new_process[llama-tied]"][0] == "passed"


@pytest.mark.parametrize(
    ("failures", "said"),
    [
        ({"test_nan_is_refused": " "}, "needs a written reason"),
        ({"test_nam": "a reason"}, "no check 'test_nam'"),
    ],
)
def test_expected_failures_are_checked(failures: dict[str, str], said: str) -> None:
    with pytest.raises(PlanishError, match=said):
        type("TestThing", (MethodSuite,), {"expected_failures": failures})


# ---- planish check ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "said"),
    [
        ("planish-nowhere", "'planish-nowhere' is not installed (installed plugins: "),
        ("", "'' is not installed"),
        ("numpy", "'numpy' is no plugin: it has no entry point in the group 'planish.plugins'"),
    ],
)
def test_check_refuses_what_is_no_plugin(package: str, said: str) -> None:
    with pytest.raises(PlanishError) as caught:
        check_package(package, quiet=True)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def _check(environment: dict[str, str], *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "planish.cli.app", "check", "planish_sample", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def _reinstall(installed: Path, environment: dict[str, str], to: Path, **files: str) -> dict[str, str]:
    """Another copy of the sample plugin, with other files in it."""
    shutil.copytree(installed, to)
    for name, text in files.items():
        stem = {"entry_points": "planish_sample-0.1.dist-info/entry_points.txt"}.get(
            name, f"planish_sample/{name}.py"
        )
        (to / stem).write_text(text)
    return {**environment, "PYTHONPATH": environment["PYTHONPATH"].replace(str(installed), str(to))}


@pytest.mark.model
@pytest.mark.slow
def test_check_runs_the_suite_that_the_package_names(
    installed: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    plugin = (installed / "planish_sample" / "__init__.py").read_text()
    points = (
        "[planish.plugins]\nsample = planish_sample\n[planish.suites]\nown = planish_sample.own:TestOwn\n"
    )
    own = (
        "from planish_sdk.testing import MethodSuite\n"
        "class TestOwn(MethodSuite):\n"
        '    method, options, expected = "sound", {"sparsity": 0.25}, 0.5\n'
    )
    two = (
        plugin.partition("        *(_method(name, name")[0]
        + '        _method("unpublished", "sound", paper=""),\n    ]\n'
    )
    changed = _reinstall(
        installed, environment, tmp_path / "site", entry_points=points, own=own, __init__=two
    )
    done = _check(changed, "--json")
    outcome = json.loads(done.stdout)
    assert done.returncode == 1
    assert (outcome["package"], outcome["version"], outcome["passed"]) == ("planish-sample", "0.1", False)
    failed = {check["name"]: check["reason"] for check in outcome["checks"] if check["outcome"] == "failed"}
    assert set(failed) == {
        "own: test_amount_is_as_asked[llama]",
        "own: test_amount_is_as_asked[llama-tied]",
        "unpublished (default options): test_record_is_complete",
    }
    assert failed["own: test_amount_is_as_asked[llama]"].startswith("asked for 0.5, measured 0.25")


def test_check_tells_what_is_broken(installed: Path, environment: dict[str, str], tmp_path: Path) -> None:
    broken = _check(_reinstall(installed, environment, tmp_path / "broken", __init__="import no_such_module"))
    assert broken.returncode == 2
    assert "plugin 'sample' is broken: ModuleNotFoundError" in broken.stderr
    empty = _check(_reinstall(installed, environment, tmp_path / "empty", __init__=""))
    assert empty.returncode == 2
    assert "offers no method" in empty.stderr


# ---- what it is made of ----------------------------------------------------------------------------------------------


@pytest.mark.model
def test_the_tokenizer_fits_the_tiny_models(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = character_tokenizer()
    assert len(tokenizer) == len({*SPECIAL, *CHARACTERS}) == 96
    ids = tokenizer(CHARACTERS)["input_ids"]
    assert ids == [1, *range(4, 96)]
    assert tokenizer.decode(ids[1:]) == CHARACTERS
    assert tokenizer("é")["input_ids"] == [1, 3]
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again("Fold the sheet,\ntwice.")["input_ids"] == tokenizer("Fold the sheet,\ntwice.")["input_ids"]


@pytest.mark.model
def test_the_task_fits_the_tiny_models() -> None:
    task, model = tiny_task(), tiny_model("llama")
    measured = {m.name: m.value for m in task.evaluate(model)}
    assert measured["perplexity"] > 1
    assert len(task.tokens("calibration", model.tokenizer)) >= 8192
    assert task.evaluation.read() != task.calibration.read()
    assert tiny_task().fingerprint() == task.fingerprint()


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, min_size=1) | st.dictionaries(st.text(), inner, min_size=1),
    max_leaves=6,
).filter(lambda value: isinstance(value, list | dict))


@given(_VALUES, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_pickles_of_every_protocol_are_seen(value: Any, protocol: int) -> None:
    assert files.is_pickle(pickle.dumps(value, protocol))


@given(st.text())
@settings(max_examples=200)
def test_text_is_no_pickle(text: str) -> None:
    assert not files.is_pickle(json.dumps({"text": text}).encode())
    assert not files.is_pickle(f"// {text}\nstatic const int zero = 0;".encode())


def test_pickles_are_seen_whatever_holds_them(tmp_path: Path) -> None:
    torch.save(torch.ones(2), tmp_path / "a.safetensors")
    torch.save(torch.ones(2), tmp_path / "b.json", _use_new_zipfile_serialization=False)
    np.save(tmp_path / "c.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "d.npz", x=np.ones(2))
    with zipfile.ZipFile(tmp_path / "e.txt", "w") as archive:
        archive.writestr("inner", pickle.dumps([1, 2]))
    found = files.pickles(tmp_path)
    assert [line.partition(" ")[0] for line in found] == ["a.safetensors", "b.json", "c.npy", "e.txt"]


def test_no_safetensors_file_is_taken_for_a_pickle(tmp_path: Path) -> None:
    """One in 32 starts with the byte that marks pickles."""
    marked = 0
    for length in range(1, 200):
        weights.write(tmp_path / "a.safetensors", {"t" * length: torch.ones(1)})
        data = (tmp_path / "a.safetensors").read_bytes()
        marked += data[0] == 0x80
        assert not files.is_pickle(data)
    assert marked > 0


def test_every_change_of_a_folder_is_told(tmp_path: Path) -> None:
    for name in ("kept", "altered", "removed"):
        (tmp_path / name).write_text("before")
    (tmp_path / "own").mkdir()
    before = files.tree([tmp_path], tmp_path / "own")
    (tmp_path / "own" / "file").write_text("ours")
    (tmp_path / "altered").write_text("BEFORE")
    (tmp_path / "removed").unlink()
    (tmp_path / "new").mkdir()
    (tmp_path / ".nv" / "ComputeCache").mkdir(parents=True)
    after = files.tree([tmp_path], tmp_path / "own")
    words = [line.partition(":")[0] + line[line.rindex("/") :] for line in files.changes(before, after)]
    assert sorted(words) == ["altered/altered", "left behind/new", "removed/removed"]


def test_unsaid_fields_are_found_at_any_depth() -> None:
    class Inner(BaseModel):
        depth: int = Field(description="levels")

    class Config(MethodConfig):
        """Fields that say everything, and fields that do not."""

        share: float = Field(0.5, ge=0, description="share")
        bits: int = Field(8, gt=0, le=16, description="bits")
        mode: int | None = Field(None, description="mode")
        names: tuple[str, ...] = Field((), description="names")
        inner: Inner | None = Field(None, description="inner")
        name: str = "none"

    assert fields.problems(Config) == [
        "Config.mode: a number with neither bounds nor choices",
        "Config.name: has no description",
        "Inner.depth: a number with neither bounds nor choices",
    ]


@pytest.mark.slow
def test_a_job_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    ended = processes().run("load", tmp_path, folder=tmp_path / "nothing", device="cpu")
    assert ended.code == 1
    assert "ArtifactError" in ended.log
    with pytest.raises(pytest.fail.Exception, match="ended with code 1"):
        ended.value()


def test_a_plain_array_is_no_pickle() -> None:
    stream = io.BytesIO()
    np.save(stream, np.ones(3))
    assert not files.is_pickle(stream.getvalue())
