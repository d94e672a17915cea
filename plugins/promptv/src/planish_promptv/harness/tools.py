"""The programs that the harness calls: which are installed, in what version, and how to get the others."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

PROGRAMS = {
    "iverilog": "apt-get install iverilog",
    "vvp": "apt-get install iverilog",
    "verilator": "apt-get install verilator",
    "yosys": "apt-get install yosys",
    "bwrap": "apt-get install bubblewrap",
}

_lock = threading.Lock()
_versions: dict[str, str] = {}


def versions() -> dict[str, str]:
    """Program -> version, of the installed tools; asked once a process."""
    with _lock:
        if not _versions:
            for name in PROGRAMS:
                if shutil.which(name):
                    _versions[name] = _version(name)
    return dict(_versions)


def _version(name: str) -> str:
    flag = {"iverilog": "-V", "vvp": "-V", "yosys": "-V"}.get(name, "--version")
    try:
        done = subprocess.run([name, flag], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "does not run"
    match = re.search(r"\d+\.\d+(?:\.\d+)?", done.stdout + done.stderr)
    return match.group() if match else "unknown"


def icarus_major() -> int | None:
    """Major version of the installed Icarus Verilog, or None."""
    head = versions().get("iverilog", "").partition(".")[0]
    return int(head) if head.isdigit() else None


def tool_folders() -> tuple[str, ...]:
    """Prefixes of tools that are not installed below /usr: they must be visible in the sandbox."""
    found = set()
    for name in PROGRAMS:
        if (path := shutil.which(name)) and not os.path.realpath(path).startswith(
            ("/usr/", "/bin/", "/nix/")
        ):
            found.add(str(Path(path).resolve().parent.parent))
    return tuple(sorted(found))
