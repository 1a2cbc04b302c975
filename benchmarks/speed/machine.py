"""On which machine, with which versions; and a bound on its memory."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

import adntn

__all__ = ["describe", "limit_memory", "same_machine"]

_ROOT = Path(__file__).parents[2]
_PACKAGES = ("numpy", "opt_einsum", "tensorly", "tensorly-torch")
#: What has to be the same for times to stand side by side.
_SAME = ("cpu", "cores", "threads", "torch", "python")


def describe(threads: int) -> dict[str, object]:
    """Return what there is to say about the machine, for the results."""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "revision": _revision(),
        "adntn": adntn.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "cpu": _cpu(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(_field("/proc/meminfo", "MemTotal") / 2**20, 1),
        "threads": threads,
        "mkldnn": torch.backends.mkldnn.is_available(),
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
    }


def same_machine(one: dict[str, object], other: dict[str, object]) -> str | None:
    """Return in what two descriptions differ so that their times cannot be compared, or None."""
    differ = [f"{name}: {one.get(name)} and {other.get(name)}" for name in _SAME if one.get(name) != other.get(name)]
    return "; ".join(differ) or None


def limit_memory(gib: float) -> None:
    """Let an allocation beyond so many GiB from now on fail, with an error that can be caught, where Unix can."""
    try:
        import resource
    except ImportError:  # not on Windows
        return
    mapped = _field("/proc/self/status", "VmSize") * 1024
    if mapped:
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (mapped + int(gib * 2**30), hard))


def _field(file: str, name: str) -> int:
    """Return a number of a file under /proc, 0 where there is none."""
    if not Path(file).is_file():
        return 0
    return next((int(line.split()[1]) for line in Path(file).read_text().splitlines() if line.startswith(name)), 0)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _revision() -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=_ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "src", "benchmarks/speed") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
