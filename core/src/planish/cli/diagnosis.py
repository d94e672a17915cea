"""What ``planish doctor`` looks at."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from pathlib import Path
from typing import Any

from planish import measure
from planish.method import Benchmark, Builder, Method
from planish.record import library_versions
from planish.registry import host


def diagnose() -> dict[str, Any]:
    """Machine, libraries, plugins, and every problem with its remedy."""
    problems = [f"plugin {p.distribution} {p.version} is broken: {p.broken}" for p in host().broken]
    missing = []
    for kind in (Method, Builder, Benchmark):
        for owned in host().records(kind):  # type: ignore[type-var]
            for requirement in owned.record.requires:
                if requirement.missing():
                    missing.append(f"{owned.record.name} needs {requirement.name}: {requirement.hint}")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": measure.device_name(),
        "gpu": _gpus(),
        "memory_bytes": _memory(),
        "free_disk_bytes": shutil.disk_usage(Path.cwd()).free,
        "libraries": library_versions(),
        "plugins": [f"{p.distribution} {p.version}" for p in host().plugins if not p.broken],
        "missing": sorted(set(missing)),
        "problems": problems,
    }


def text(data: dict[str, Any]) -> str:
    memory = f"{data['memory_bytes'] / 1e9:.1f} GB" if data["memory_bytes"] else "unknown"
    lines = [
        f"python     {data['python']} on {data['platform']}",
        f"cpu        {data['cpu']}",
        f"gpu        {', '.join(data['gpu']) or 'none'}",
        f"memory     {memory}",
        f"free disk  {data['free_disk_bytes'] / 1e9:.1f} GB in {Path.cwd()}",
        f"libraries  {', '.join(f'{name} {version}' for name, version in data['libraries'].items())}",
        f"plugins    {', '.join(data['plugins'])}",
        *(f"optional   {line}" for line in data["missing"]),
        *(f"PROBLEM    {line}" for line in data["problems"]),
    ]
    return "\n".join(lines)


def _gpus() -> list[str]:
    """GPUs that torch sees; none where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return []
    import torch

    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]


def _memory() -> int:
    path = Path("/proc/meminfo")
    if not path.is_file():
        return 0
    return int(path.read_text().split("MemTotal:")[1].split()[0]) * 1024
