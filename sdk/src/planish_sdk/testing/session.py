"""The suites of one distribution under pytest, in a process of their own: ``… DISTRIBUTION REPORT``."""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from planish import registry
from planish.artifact import write_json
from planish.errors import PlanishError
from planish.method import Method
from planish_sdk.testing.suite import MethodSuite

GROUP = "planish.suites"
_FILE = "from planish_sdk.testing.session import suites\nglobals().update(suites({!r}))\n"


def suites(distribution: str) -> dict[str, type[MethodSuite]]:
    """The suites that the distribution names in its entry points of the group ``planish.suites``, and one with default
    options for each of its methods that none of them covers.

    Raises:
        PlanishError: an entry point does not name a `MethodSuite`.
    """
    found: dict[str, type[MethodSuite]] = {}
    for point in importlib.metadata.distribution(distribution).entry_points:
        if point.group == GROUP:
            suite = point.load()
            if not (isinstance(suite, type) and issubclass(suite, MethodSuite)):
                raise PlanishError(
                    f"entry point {point.name!r} of {GROUP} names {point.value!r}, which is no MethodSuite"
                )
            found[point.name] = suite
    host = registry.host()
    covered = {host.method(suite.method).address for suite in found.values()}
    for owned in host.records(Method):
        if owned.distribution == distribution and owned.address not in covered:
            name = owned.record.name
            found[f"{name} (default options)"] = type(name, (MethodSuite,), {"method": owned.address})
    return found


class Listing:
    """A pytest plugin that keeps one entry a check, and prints it."""

    def __init__(self) -> None:
        self.checks: list[dict[str, str]] = []

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._add("collection", "failed", _reason(report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        outcome, reason = str(report.outcome), _reason(report)
        if report.skipped and hasattr(report, "wasxfail"):
            outcome, reason = "expected failure", str(report.wasxfail)
        self._add(report.nodeid.partition("::")[2].replace("::", ": "), outcome, reason)

    def _add(self, name: str, outcome: str, reason: str) -> None:
        self.checks.append({"name": name, "outcome": outcome, "reason": reason})
        shown = outcome.upper() if outcome == "failed" else outcome
        print(f"{shown:8} {name}{': ' if reason else ''}{reason}", flush=True)


def _reason(report: Any) -> str:
    """The first line of why a check failed or was skipped."""
    told = report.longrepr
    if told is None:
        return ""
    crash = getattr(told, "reprcrash", None)
    text = told[2] if isinstance(told, tuple) else crash.message if crash else str(told)
    lines = [line for line in str(text).splitlines() if line.strip()]
    return lines[0].removeprefix("Skipped: ").removeprefix("AssertionError: ") if lines else ""


def main(distribution: str, report: str) -> None:
    """Run the suites and write what became of each check to the file ``report``."""
    listing = Listing()
    with tempfile.TemporaryDirectory(prefix="planish-check-") as scratch:
        file = Path(scratch) / "test_conformance.py"
        file.write_text(_FILE.format(distribution))
        settings = Path(scratch) / "pytest.ini"
        settings.write_text("[pytest]\npython_classes = *\npython_files = test_conformance.py\n")
        options = ["-p", "no:cacheprovider", "-p", "no:terminal", "--import-mode=importlib"]
        places = [
            f"--rootdir={scratch}",
            f"--basetemp={Path(scratch) / 'work'}",
            "-c",
            str(settings),
            str(file),
        ]
        code = pytest.main([*options, *places], plugins=[listing])
    write_json(Path(report), {"code": int(code), "checks": listing.checks})


if __name__ == "__main__":
    main(*sys.argv[1:])
