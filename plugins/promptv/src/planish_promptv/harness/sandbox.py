"""How tools are confined: bubblewrap, else namespaces by ``unshare``, else, only when asked for, limits alone.

A tier counts as available after it ran once and proved what it promises, not because its program is installed:
bubblewrap fails where user namespaces are off (stock Ubuntu 24.04, default Docker profiles).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from planish.errors import PlanishError
from planish_promptv.harness.process import Limits, Pool, RunnerError

TIERS = ("bwrap", "unshare", "rlimits")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32", "/nix")
_HIDDEN = ("/etc", "/home", "/root", "/var", "/srv", "/media", "/run", "/boot", "/tmp", "/dev/shm")  # noqa: S108
_INSIDE = {"bwrap": "/job", "unshare": "/mnt"}
# For ``unshare``: the job's folder becomes /mnt, what follows is covered by empty folders, the rest is read-only.
_ENTER = """
mount --bind "$1" /mnt; cd /mnt; unset OLDPWD; shift
while [ "$1" != -- ]; do if [ -d "$1" ]; then mount -t tmpfs -o ro none "$1"; fi; shift; done; shift
mount -o remount,bind,ro /
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


class SandboxError(PlanishError):
    """No sandbox works on this machine, or not the one asked for."""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One tier with its details, ready to wrap command lines.

    Attributes:
        tier: ``bwrap``, ``unshare`` or ``rlimits``.
        drop: start everything as the user nobody (this process is root).
        count: the shell's option for the number of processes (dash -p, others -u); empty where the limit cannot be set,
            for instance because an old kernel counts all processes of the user.
        extra: folders with tools outside the system's own, readable inside.
    """

    tier: str
    drop: bool = False
    count: str = ""
    extra: tuple[str, ...] = ()

    def wrap(self, argv: list[str], folder: Path, limits: Limits) -> list[str]:
        """The command line that runs ``argv`` confined to ``folder``."""
        if self.tier == "rlimits":
            return argv
        # Only a limit that is set inside the user namespace counts that namespace alone. The shell is process 1 and
        # waits for the tool: its CPU time and memory reach us, and death by a signal becomes exit status 128 + n.
        count = f"ulimit {self.count} {limits.processes} || exit; " if self.count else ""
        argv = ["sh", "-c", count + '"$@"; exit "$?"', "sh", *argv]
        if self.tier == "bwrap":
            return [_program("bwrap"), *self._mounts(folder), *argv]
        return [_program("unshare"), *self._namespaces(folder), *argv]

    def environment(self, folder: Path) -> dict[str, str]:
        """Nothing of the caller's environment goes in."""
        inside = _INSIDE.get(self.tier, str(folder))
        path = ":".join(["/usr/bin", "/bin", *(f"{prefix}/bin" for prefix in self.extra)])
        return {
            "PATH": path,
            "HOME": inside,
            "TMPDIR": inside,
            "LC_ALL": "C",
            "PLANISH_JOB": folder.name,
        }

    def _mounts(self, folder: Path) -> list[str]:
        options = ["--unshare-all", "--die-with-parent", "--new-session", "--as-pid-1"]
        options += ["--cap-drop", "ALL", "--hostname", "sandbox"]
        for place in map(Path, _SYSTEM):
            if place.is_symlink():
                options += ["--symlink", str(place.readlink()), str(place)]
            elif place.is_dir():
                options += ["--ro-bind", str(place), str(place)]
        for prefix in self.extra:
            options += ["--ro-bind", prefix, prefix]
        options += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
        return [*options, "--bind", str(folder), "/job", "--chdir", "/job", "--remount-ro", "/"]

    def _namespaces(self, folder: Path) -> list[str]:
        """Own PID, network, IPC and mount namespaces; folders that hold the host's own files are covered."""
        hidden = [place for place in _HIDDEN if not any(e.startswith(place) for e in self.extra)]
        options = ["--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child"]
        return [*options, "--mount", "--mount-proc", "sh", "-ec", _ENTER, "sh", str(folder), *hidden, "--"]


@dataclass(frozen=True, slots=True)
class Probe:
    """What was tried to find the sandbox.

    Attributes:
        sandbox: the best one that works, or None.
        failures: tier -> what it said when it did not work.
    """

    sandbox: Sandbox | None
    failures: dict[str, str] = field(default_factory=dict)


def probe(pool: Pool, extra: tuple[str, ...] = (), tiers: tuple[str, ...] = TIERS[:2]) -> Probe:
    """Try each tier, and within it the strictest variant first."""
    failures: dict[str, str] = {}
    root = os.geteuid() == 0
    for tier in tiers:
        for drop in (True, False) if root else (False,):
            for count in ("-p", "-u", "") if tier != "rlimits" else ("",):
                sandbox = Sandbox(tier, drop, count, extra)
                problem = _try(sandbox, pool)
                if not problem:
                    return Probe(sandbox, failures)
                failures.setdefault(tier, problem)
    return Probe(None, failures)


def find(pool: Pool, extra: tuple[str, ...], tier: str | None, allow_unsandboxed: bool) -> Sandbox:
    """The sandbox to use.

    Raises:
        SandboxError: ``tier`` is unknown or does not work, or none works and limits alone were not allowed.
    """
    if tier is not None and tier not in TIERS:
        raise SandboxError(f"tier = {tier!r} is not one of {', '.join(TIERS)}")
    if tier == "rlimits" and not allow_unsandboxed:
        raise SandboxError(
            "tier = 'rlimits' runs generated code without a sandbox: it needs allow_unsandboxed"
        )
    wanted = (tier,) if tier else TIERS[: 3 if allow_unsandboxed else 2]
    found = probe(pool, extra, wanted)
    if found.sandbox:
        return found.sandbox
    tried = "; ".join(f"{name}: {why}" for name, why in found.failures.items())
    raise SandboxError(
        f"no sandbox works here ({tried}). Install bubblewrap (apt-get install bubblewrap) and allow user "
        "namespaces, or pass --allow-unsandboxed to run generated code with resource limits alone"
    )


def work_folder(sandbox: Sandbox) -> Path:
    """A new private folder that the confined tools may write to."""
    folder = Path(tempfile.mkdtemp(prefix="planish-hdl-"))
    if sandbox.drop:
        from planish_promptv.harness.runner import NOBODY

        os.chown(folder, NOBODY, NOBODY)
    return folder


def _try(sandbox: Sandbox, pool: Pool) -> str:
    """Run a script that checks the confinement; the reason why it does not hold, or empty."""
    folder = work_folder(sandbox)
    hidden = "" if sandbox.tier == "rlimits" else "test ! -e /etc/passwd && "
    script = f"{hidden}(true) && echo held > proof"
    try:
        argv = sandbox.wrap(["/bin/sh", "-c", script], folder, Limits())
        with pool.runner() as runner:
            done = runner.run(argv, folder, Limits(cpu_s=5), sandbox.environment(folder), sandbox.drop)
        if done.code == 0 and (folder / "proof").is_file():
            return ""
        lines = (done.stderr or done.stdout).strip().splitlines()
        return lines[0] if lines else f"exit status {done.code}"
    except (RunnerError, SandboxError) as error:
        return str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _program(name: str) -> str:
    path = shutil.which(name)
    if path is None:
        raise SandboxError(f"{name} is not installed")
    return path
