"""What a machine takes for calls, arithmetic and memory: measured once, and kept in a small file.

The file is JSON, in the user's cache folder or where ``ADNTN_MACHINE`` says. It has one for each processor, number of
threads, version of torch and device; one under the name ``"any"`` stands for every machine, and then nothing is
measured. With ``ADNTN_MACHINE=none`` there are no profiles, and choices go by the multiply-adds.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import torch

__all__ = [
    "BYTES",
    "CHANNELS",
    "IMAGES",
    "POSITIONS",
    "SIDES",
    "Profile",
    "Rates",
    "Table",
    "profile_file",
    "profile_for",
    "read_profiles",
    "remember",
    "shipped",
    "using",
]

#: Sides of the matrix products that are measured.
SIDES = (1, 4, 16, 64, 256)
#: Channels and positions of the convolutions.
CHANNELS, POSITIONS = (4, 16, 64, 256), (4, 64, 512)
#: So many images make a batch: on one thread torch takes another library for fewer.
IMAGES = 16
#: Bytes of the arrays that are read and written. For the last, systems give out new pages each time.
BYTES = (1 << 14, 1 << 18, 1 << 22, 1 << 24, 3 << 24)

FORMAT = 1
SHIPPED = Path(__file__).with_name("machine.json")
_MOST_BYTES = 1 << 20
Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Rates:
    """Arithmetic in one dtype, in flops a second.

    Attributes:
        tall: of products of many rows with a small matrix, by its smaller and its larger side (:data:`SIDES`).
        wide: of other products, by their smallest and their second side.
        kernel: of convolutions with a kernel of more than one entry, by :data:`CHANNELS` and :data:`POSITIONS`.
        pointwise: of those with one entry.
    """

    tall: Table
    wide: Table
    kernel: Table
    pointwise: Table


@dataclass(frozen=True)
class Profile:
    """What one device of a machine takes.

    Attributes:
        view: seconds of a call that moves nothing.
        move: of a call on a few numbers.
        product: of a small matrix product.
        item: of each further small product in a batch of them.
        convolution: of a small convolution of one image.
        convolutions: of one of :data:`IMAGES`.
        autograd: how many times as long a call takes with its graph and its backward pass.
        making: seconds of each call in making factors or a weight.
        making_training: the same with the graph and the backward pass that belong to it.
        read: bytes a second of arrays of :data:`BYTES`.
        write: the same into new memory.
        float32: arithmetic.
        bfloat16: arithmetic.
    """

    view: float
    move: float
    product: float
    item: float
    convolution: float
    convolutions: float
    autograd: float
    making: float
    making_training: float
    read: tuple[float, ...]
    write: tuple[float, ...]
    float32: Rates
    bfloat16: Rates

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain numbers and lists."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Profile:
        """Read what :meth:`to_dict` returned.

        Raises:
            ValueError: something is missing or not a positive number.
        """
        known = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            raise ValueError("not the numbers of a machine")
        shapes: dict[str, tuple[int, ...]] = {"read": (len(BYTES),), "write": (len(BYTES),)}
        read: dict[str, Any] = {}
        for name, value in values.items():
            if name in ("float32", "bfloat16"):
                read[name] = _rates(value)
            else:
                read[name] = _numbers(value, shapes.get(name, ()))
        return cls(**read)


_RATES = {
    "tall": (len(SIDES), len(SIDES)),
    "wide": (len(SIDES), len(SIDES)),
    "kernel": (len(CHANNELS), len(POSITIONS)),
    "pointwise": (len(CHANNELS), len(POSITIONS)),
}


def _rates(values: Any) -> Rates:
    if not isinstance(values, Mapping) or set(values) != set(_RATES):
        raise ValueError("not the rates of a machine")
    return Rates(**{name: _numbers(values[name], shape) for name, shape in _RATES.items()})


def _numbers(value: Any, shape: tuple[int, ...]) -> Any:
    if not shape:
        if type(value) not in (int, float) or not 0 < value < math.inf:
            raise ValueError(f"{value!r} is not a positive number")
        return float(value)
    if type(value) is not list or len(value) != shape[0]:
        raise ValueError(f"{value!r} is not a list of {shape[0]}")
    return tuple(_numbers(each, shape[1:]) for each in value)


def _plain(value: Any) -> Any:
    if isinstance(value, Rates):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


# --- which profile --------------------------------------------------------------------------------------------------

_KNOWN: dict[str, Profile] = {}
_GIVEN: list[Profile | None] = []


def profile_for(device: torch.device) -> Profile | None:
    """Return the profile of a device: from memory, from the file, or measured now and written there.

    On the meta device, which has no times, it is the one that the library brings along. None where there are to be no
    profiles.
    """
    if _GIVEN:
        return _GIVEN[-1]
    if os.environ.get("ADNTN_MACHINE") == "none":
        return None
    name = machine_name(device)
    if name not in _KNOWN:
        _KNOWN[name] = _find(device, name)
    return _KNOWN[name]


def _find(device: torch.device, name: str) -> Profile:
    machines = read_profiles(profile_file())
    for key in (name, "any"):
        if key in machines:
            return machines[key]
    if device.type == "meta":
        return shipped()
    from adntn.execution.calibration import measure  # which only few processes need

    return measure(device)


@cache
def shipped() -> Profile:
    """Return the profile that the library brings along, of a common processor with one thread."""
    return Profile.from_dict(json.loads(SHIPPED.read_text())["machines"]["any"])


@contextlib.contextmanager
def using(profile: Profile | None) -> Iterator[None]:
    """Let every device have this profile, or none, until the block ends."""
    _GIVEN.append(profile)
    try:
        yield
    finally:
        _GIVEN.pop()


def remember(device: torch.device, profile: Profile) -> None:
    """Use a profile from now on, and write it into the file, where that is possible."""
    name, file = machine_name(device), profile_file()
    _KNOWN[name] = profile
    if file is None:
        return
    machines = {key: each.to_dict() for key, each in read_profiles(file, warn=False).items()}
    text = json.dumps({"format": FORMAT, "machines": {**machines, name: profile.to_dict()}}, indent=1)
    # A folder that cannot be written to only means that the next process measures again.
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        try:
            with os.fdopen(handle, "w") as written:
                written.write(text)
            Path(temporary).replace(file)
        finally:
            Path(temporary).unlink(missing_ok=True)


def machine_name(device: torch.device) -> str:
    """Return what a profile depends on, in one line."""
    what = _processor()
    if device.type == "cuda":
        what = f"{torch.cuda.get_device_name(device)} beside {what}"
    elif device.type != "cpu":
        what = f"{device.type} beside {what}"
    return f"{what}, {torch.get_num_threads()} threads, torch {torch.__version__}"


@cache
def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open() as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "unknown processor"


# --- the file -------------------------------------------------------------------------------------------------------


def profile_file() -> Path | None:
    """Return where profiles are kept; None where there is no place for them."""
    given = os.environ.get("ADNTN_MACHINE")
    if given:
        return None if given == "none" else Path(given)
    try:
        if sys.platform == "win32":
            folder = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        elif sys.platform == "darwin":
            folder = Path.home() / "Library" / "Caches"
        else:
            folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # nobody's home
        return None
    return folder / "adntn" / "machine.json"


def read_profiles(file: Path | None, *, warn: bool = True) -> dict[str, Profile]:
    """Return the profiles of a file; a warning and none where it is not one that this library wrote."""
    try:
        if file is None or not file.is_file():
            return {}
        if file.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        values = json.loads(file.read_text())
        if type(values) is not dict or values.get("format") != FORMAT or type(values.get("machines")) is not dict:
            raise ValueError("it has no profiles of this version")
        return {name: Profile.from_dict(each) for name, each in values["machines"].items()}
    except (OSError, ValueError, RecursionError) as error:
        if warn:
            warnings.warn(
                f"{file} is not a file of machine profiles that this adntn wrote ({error}); it is left out and written "
                "anew.",
                stacklevel=2,
            )
        return {}
