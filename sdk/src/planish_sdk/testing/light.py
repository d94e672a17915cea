"""Run in a fresh process: what does importing a plugin's light modules bring with it?

``python -m planish_sdk.testing.light DISTRIBUTION ENTRY [CONFIG ...]`` prints JSON.
"""

from __future__ import annotations

import importlib
import json
import sys

HEAVY = ("torch", "transformers", "numpy")


def main(distribution: str, entry: str, *configs: str) -> None:
    """Import the entry module, let the host load it, then import the config modules, and tell what each brought."""
    seen: set[str] = set()

    def heavy() -> list[str]:
        new = [name for name in HEAVY if name in sys.modules and name not in seen]
        seen.update(new)
        return new

    report: dict[str, object] = {"before": heavy()}
    importlib.import_module(entry.partition(":")[0])
    report["entry"] = heavy()
    from planish.registry import Host

    host = Host(only=[distribution])
    report["broken"] = [f"{plugin.name}: {plugin.broken}" for plugin in host.broken]
    report["hooks"] = heavy()
    for config in configs:
        importlib.import_module(config.partition(":")[0])
    report["config"] = heavy()
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
