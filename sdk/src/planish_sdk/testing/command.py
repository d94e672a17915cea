"""``planish check PACKAGE``: run the conformance kit on an installed plugin."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pytest  # noqa: F401 - its absence is told before anything is started

from planish import registry
from planish.errors import BrokenPlugin, PlanishError
from planish.hooks import GROUP
from planish.method import Method


def check_package(package: str, quiet: bool) -> dict[str, Any]:
    """Run the package's own suites, and the default suite for every method they leave out.

    Args:
        package: a distribution with entry points in the group ``planish.plugins``. Its suites are the classes that its
            entry points in the group ``planish.suites`` name (``ace = "planish_ace.conformance:TestAce"``).
        quiet: print nothing.

    Returns:
        ``{"package", "version", "passed", "checks": [{"name", "outcome", "reason"}]}``; the outcome is ``"passed"``,
        ``"failed"``, ``"skipped"`` or ``"expected failure"``.

    Raises:
        PlanishError: no such package, no plugin or no method in it, or a plugin that cannot be loaded.
    """
    distribution, version = _find(package)
    with tempfile.TemporaryDirectory(prefix="planish-check-") as folder:
        report = Path(folder) / "report.json"
        log = Path(folder) / "log"
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTEST_ADDOPTS", "PYTEST_PLUGINS")}
        with log.open("w") as errors:
            subprocess.run(
                [sys.executable, "-m", "planish_sdk.testing.session", distribution, str(report)],
                stdout=subprocess.DEVNULL if quiet else None,
                stderr=errors,
                env={**environment, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
                check=False,
            )
        if not report.is_file():
            lines = log.read_text(errors="replace").strip().splitlines()
            raise PlanishError(
                f"package {distribution!r}: the checks did not run ({lines[-1] if lines else 'killed'})"
            )
        checks: list[dict[str, str]] = json.loads(report.read_text())["checks"]
    counts = Counter(check["outcome"] for check in checks)
    passed = counts["passed"] > 0 and counts["failed"] == 0
    if not quiet:
        print(
            f"{distribution} {version}: {', '.join(f'{n} {outcome}' for outcome, n in sorted(counts.items()))}"
        )
    return {"package": distribution, "version": version, "passed": passed, "checks": checks}


def _find(package: str) -> tuple[str, str]:
    """Name and version of a distribution that offers methods."""
    host = registry.host()
    plugins = sorted({plugin.distribution for plugin in host.plugins if plugin.name != "builtin"})
    try:
        found = importlib.metadata.distribution(package)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        known = ", ".join(plugins) or "none"
        raise PlanishError(f"package {package!r} is not installed (installed plugins: {known})") from None
    if not any(point.group == GROUP for point in found.entry_points):
        raise PlanishError(
            f"package {found.name!r} is no plugin: it has no entry point in the group {GROUP!r}"
        )
    for plugin in host.broken:
        if plugin.distribution == found.name:
            raise BrokenPlugin(f"package {found.name!r}: plugin {plugin.name!r} is broken: {plugin.broken}")
    if not any(owned.distribution == found.name for owned in host.records(Method)):
        raise PlanishError(f"package {found.name!r} offers no method, so there is nothing to check")
    return found.name, found.version
