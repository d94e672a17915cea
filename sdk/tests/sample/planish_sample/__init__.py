"""A plugin with one sound pruner, and others that each break one promise."""

from __future__ import annotations

from planish.hooks import hookimpl
from planish.method import Method

FAULTY = (
    "noop",
    "timid",
    "unseeded",
    "litters",
    "homesick",
    "vandal",
    "pickles",
    "carries-nan",
    "forgetful",
    "misremembers",
    "volatile",
    "unties",
    "overflows",
    "stateful",
    "crashes",
    "speechless",
    "anonymous",
    "wanders",
)


def _method(name: str, target: str, **fields: str) -> Method:
    settings = {
        "summary": "zeroes the smallest weights of every row",
        "config": "planish_sample.config:SampleConfig",
        "target": f"planish_sample.wiring:{target}",
        "check": "planish_sample.wiring:check",
        "paper": "none; made up for the tests",
        **fields,
    }
    return Method(name=name, kind="pruner", **settings)


@hookimpl
def pruners() -> list[Method]:
    return [
        _method("sound", "sound"),
        *(_method(name, name.replace("-", "_")) for name in FAULTY),
        _method("unchecked", "sound", check=""),
        _method("mislabelled", "sound", yields="other"),
        _method("unpublished", "sound", paper=""),
        _method("undescribed", "sound", config="planish_sample.config:Undescribed"),
        _method("lenient", "sound", config="planish_sample.config:Lenient"),
        _method("heavy", "sound", config="planish_sample.heavy:HeavyConfig"),
    ]
