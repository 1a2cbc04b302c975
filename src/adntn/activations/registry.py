"""Which activations there are, how they are written, and what is known of one before a generator has it."""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from adntn.activations import functions
from adntn.activations.running import run
from adntn.errors import AdntnError, ConfigError, check_choice, nearest

__all__ = [
    "ACTIVATIONS",
    "ActivationKind",
    "canonical",
    "gain",
    "hidden_bound",
    "make_activation",
    "parameter_shapes",
    "register_activation",
    "reset",
]

Factory = Callable[..., nn.Module]
Gain = float | Callable[..., float]


@dataclass(frozen=True)
class ActivationKind:
    """What the library knows of one activation before it builds any module.

    Attributes:
        factory: makes the module of one level.
        options: the options it takes, with their defaults; one whose default is an int takes whole numbers only.
        grouped: whether the factory takes ``groups``.
        gain: g of the paper's Eq. 14, or a function of the options.
    """

    factory: Factory
    options: Mapping[str, float]
    grouped: bool
    gain: Gain


def _kind(name: str, factory: Factory, gain: Gain) -> ActivationKind:
    """Read from a factory's signature whether it takes groups, and which options."""
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some callables written in C do not tell
        parameters = {}
    grouped = False
    options: dict[str, float] = {}
    for key, parameter in parameters.items():
        by_keyword = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        default = parameter.default
        if key == "groups" and by_keyword:
            grouped = True
        elif default is parameter.empty and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ConfigError(
                f"activation {name!r}: its factory cannot be called, since its argument {key!r} has no default; give "
                f"it one, or register functools.partial(factory, {key}=...)."
            )
        elif by_keyword and type(default) in (int, float):
            options[key] = float(default) if parameter.annotation in (float, "float") else default
    return ActivationKind(factory, MappingProxyType(options), grouped, gain)


_RELU_GAIN = math.sqrt(2.0)
_BUILT_IN: Mapping[str, tuple[Factory, Gain]] = {
    "identity": (functions.Identity, 1.0),
    "relu": (functions.ReLU, _RELU_GAIN),
    "elu": (functions.ELU, _RELU_GAIN),
    "gelu": (functions.GELU, _RELU_GAIN),
    "silu": (functions.SiLU, _RELU_GAIN),
    "swish": (functions.Swish, _RELU_GAIN),
    "tanh": (functions.Tanh, 1.0),
    "sine": (functions.Sine, 1.0),
    "siren": (functions.SIREN, 1.0),
    "rational": (functions.Rational, 1.0),
    "prelu": (functions.PReLU, lambda slope: math.sqrt(2.0 / (1.0 + slope**2))),
}
_REGISTRY = {name: _kind(name, factory, gain) for name, (factory, gain) in _BUILT_IN.items()}
ACTIVATIONS: Mapping[str, ActivationKind] = MappingProxyType(_REGISTRY)


def register_activation(name: str, factory: Factory, *, gain: Gain = 1.0) -> None:
    """Make a module of your own known as an activation, under a name that configs and files then use.

    The factory is called once for every level. It may take ``groups`` (by that name), for learned numbers of each
    group, and keyword arguments with numeric defaults, which become options: ``"mine(a=2)"``; where the default is
    an int, and not annotated as a float, whole numbers only. The module maps ``(groups, entries)`` to the same
    shape and dtype, elementwise and always alike. Its parameters are learned, counted and saved as
    ``activation.{level}.{name}``, and have at most three dimensions. It has no state beside them: a constant may be
    a buffer with ``persistent=False``. To draw anew, its ``reset_parameters`` is called, or else values are taken
    from a new module of the factory's.

    For ``backward="adjoint"`` it also needs ``derivative(z)``, elementwise, and, if it learns anything,
    ``parameter_gradients(z, upstream)``, which returns the sums over entries by the parameters' names.

    A file keeps the name only: register the activation before loading it. Registering the same factory again is fine.

    Args:
        name: lower-case letters, digits and underscores.
        factory: a class or function, not a module.
        gain: g of the paper's Eq. 14 (sqrt(2) for the ReLU family), or a function of the options.

    Raises:
        ConfigError: the name is taken or cannot be used, or the factory or its module is not as described.

    Example:
        >>> adntn.register_activation("mish", torch.nn.Mish)
        >>> adntn.GeneratorConfig(activation="mish")
    """
    if not isinstance(name, str) or not re.fullmatch("[a-z_][a-z_0-9]*", name):
        raise ConfigError(f"an activation cannot be named {name!r}; use lower-case letters, digits and underscores.")
    if isinstance(factory, nn.Module) or not callable(factory):
        raise ConfigError(
            f"activation {name!r}: {factory!r} is not a factory; every level needs a module of its own, so give the "
            "class, or a function that returns a new module."
        )
    if name in _BUILT_IN:
        raise ConfigError(f"activation {name!r} is one of the library's own; choose another name.")
    if name in _REGISTRY and _origin(_REGISTRY[name].factory) != _origin(factory):
        raise ConfigError(
            f"activation {name!r} is registered already, for {_REGISTRY[name].factory!r}; choose another name."
        )
    kind = _kind(name, factory, gain)
    _check_gain(name, kind)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        for groups in (1, 2):
            _check_module(name, [_build(name, kind, kind.options, groups) for _ in range(2)], groups)
    _REGISTRY[name] = kind
    parameter_shapes.cache_clear()


def _origin(factory: Any) -> object:
    """Return what stays the same when the cell or file that defines a factory is run again."""
    if isinstance(factory, functools.partial):
        return _origin(factory.func), factory.args, tuple(sorted(factory.keywords.items()))
    qualified = getattr(factory, "__module__", None), getattr(factory, "__qualname__", None)
    if qualified[1] is None:
        return factory
    # All lambdas of a place have one name.
    return (*qualified, factory.__code__) if qualified[1].endswith("<lambda>") else qualified


def _check_gain(name: str, kind: ActivationKind) -> None:
    value = kind.gain(**kind.options) if callable(kind.gain) else kind.gain
    if not isinstance(value, (int, float)) or not (math.isfinite(value) and value > 0):
        raise ConfigError(f"activation {name!r}: gain={value!r} is not possible; give a positive number.")


@torch.no_grad()
def _check_module(name: str, modules: list[nn.Module], groups: int) -> None:
    """Refuse what would fail, or go wrong unseen, only once a generator has it; ``modules`` are two of one kind."""
    module, other = modules
    if module is other:
        raise ConfigError(
            f"activation {name!r}: its factory gives one module again and again; make a new one each time."
        )
    z = torch.linspace(-3.0, 3.0, 8 * groups, dtype=torch.float64, device="cpu").view(groups, 8)
    moved = torch.cat([z[:, :1] + 0.5, z[:, 1:]], dim=1)
    try:
        before, after = run(module, z), run(module, moved)
    except Exception as error:
        raise ConfigError(
            f"activation {name!r}: its module fails on an input of shape (groups, entries) = {tuple(z.shape)} in "
            f"float64: {error}"
        ) from error
    if not isinstance(before, Tensor) or (before.shape, before.dtype) != (z.shape, z.dtype):
        got = f"{tuple(before.shape)}, {before.dtype}" if isinstance(before, Tensor) else repr(before)
        raise ConfigError(f"activation {name!r}: of an input of {tuple(z.shape)}, {z.dtype}, its module makes {got}.")
    if not torch.isfinite(before).all():
        raise ConfigError(f"activation {name!r}: it gives NaN or infinity between -3 and 3.")
    if not torch.equal(before[:, 1:], after[:, 1:]):
        raise ConfigError(
            f"activation {name!r}: an entry of its output depends on other entries or on chance; only elementwise "
            "modules can be activations."
        )


# --- reading a name -------------------------------------------------------------------------------------------------

_SPELLING = re.compile(r"\s*(?P<name>[a-z_0-9]+)\s*(?:\((?P<options>[^()]*)\))?\s*")


def _parse(text: str) -> tuple[str, dict[str, float]]:
    match = _SPELLING.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"activation={text!r} cannot be read; write a name, as 'elu', or 'sine(omega=3)'.")
    try:
        name = check_choice("activation", match["name"], ACTIVATIONS)
    except ConfigError as error:
        raise ConfigError(f"{error} One of your own has to be registered first: adntn.register_activation.") from None
    options = dict(ACTIVATIONS[name].options)
    for part in filter(None, (p.strip() for p in (match["options"] or "").split(","))):
        key, _, value = (p.strip() for p in part.partition("="))
        if key not in options:
            known = ", ".join(options) or "none"
            raise ConfigError(
                f"activation={text!r}: {name} has no option {key!r}; it takes {known}.{nearest(key, options)}"
            )
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(f"activation={text!r}: {key}={value!r} is not a number.") from None
        if not math.isfinite(number):
            raise ConfigError(f"activation={text!r}: {key} must be finite.")
        whole = isinstance(options[key], int)
        if whole and not number.is_integer():
            raise ConfigError(f"activation={text!r}: {key}={value} is not a whole number.")
        options[key] = int(number) if whole else number
    return name, options


def canonical(text: str) -> str:
    """Return the one spelling of an activation: options at their default are left out.

    Raises:
        ConfigError: the activation or one of its options is not known or not possible.
    """
    name, options = _parse(text)
    defaults = ACTIVATIONS[name].options
    changed = ", ".join(f"{k}={_shortest(v)}" for k, v in options.items() if v != defaults[k])
    spelling = f"{name}({changed})" if changed else name
    parameter_shapes(spelling, 1)  # builds the module once, which refuses options that are not possible
    return spelling


def _shortest(number: float) -> str:
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


@functools.lru_cache(maxsize=256)
def parameter_shapes(text: str, groups: int = 1) -> Mapping[str, tuple[int, ...]]:
    """Return the names and shapes of what the activation learns on each level.

    Raises:
        ConfigError: the activation or one of its options is not known or not possible.
    """
    module = make_activation(text, groups)
    return MappingProxyType({name: tuple(p.shape) for name, p in module.named_parameters()})


def gain(text: str) -> float:
    """Return the factor g of Eq. 14: sqrt(2) for the ReLU family, sqrt(2 / (1 + a^2)) for PReLU, else 1."""
    name, options = _parse(text)
    value = ACTIVATIONS[name].gain
    return float(value(**options) if callable(value) else value)


def hidden_bound(text: str, n_in: int, cores: int, *, first: bool) -> float | None:
    """Return the bound of the uniform draw of a hidden level's cores for ``siren``, None for the others.

    The rule of Sitzmann et al. (2020) is one for the matrix of a layer, of fan-in n and with arguments sin(omega z):
    entries from U(-1/n, 1/n) in the first layer and U(-sqrt(6/n)/omega, sqrt(6/n)/omega) in the others, after which
    omega * z has deviation 1 again. The matrix of a *level* is the Kronecker product of its N cores, and its fan-in
    is n_in**N. So its entries are given the rule's variance, spread evenly over the cores; for N = 1 that is the rule
    itself. There is no calibration inside after it. Disentanglers, root and readout start as with other activations.

    What comes out, as medians of omega * z's deviation over seeds 0 to 4 for a ttn of 4096 x 4096 (two hidden
    levels, omega = 30): 1.6 and 0.66 with a root of deviation 1 (``"isometric"``), spread from 1 to 5 and from 0.06
    to 0.7, as a product of few random cores has no sharp deviation. With the paper's root of 0.05 it is 0.08 and
    0.05: the sine is then all but linear, since SIREN takes its inputs to be of order 1. The rule core by core,
    with n_in of Eq. 13 and omega divided out in each of N cores, gives 0.17 and 9e-14: a linear generator.
    The stable rank is 1.6 of 64 (512 x 512 x 3 x 3: 1.5 of 32), against 7.9 for the calibrated ``sine(omega=3)`` and
    17.7 for ``sine(omega=30)``: take ``sine`` where SIREN's own start is not the point.

    Args:
        text: the activation.
        n_in: size of a mode of the state that comes in.
        cores: expansion and carry cores of the level, N.
        first: whether the level takes the root.
    """
    name, options = _parse(text)
    if name != "siren":
        return None
    if first:
        return math.pow(3.0, 0.5 - 0.5 / cores) / n_in
    return math.sqrt(3.0 / n_in) * math.pow(math.sqrt(2.0) / abs(options["omega"]), 1.0 / cores)


# --- modules --------------------------------------------------------------------------------------------------------


def _build(name: str, kind: ActivationKind, options: Mapping[str, float], groups: int) -> nn.Module:
    try:
        # On the CPU, so that a seed gives the same start on every device.
        with torch.device("cpu"):
            module = kind.factory(**({"groups": groups} if kind.grouped else {}), **options)
    except AdntnError:
        raise
    except Exception as error:
        given = ", ".join(f"{k}={_shortest(v)}" for k, v in options.items())
        raise ConfigError(f"activation {name!r} cannot be made with {given or 'no options'}: {error}") from error
    if not isinstance(module, nn.Module):
        raise ConfigError(f"activation {name!r}: its factory makes {module!r}, not a torch.nn.Module.")
    named = dict(module.named_parameters())
    for key, parameter in named.items():
        if is_lazy(parameter) or parameter.ndim > 3:
            found = "no shape yet" if is_lazy(parameter) else f"shape {tuple(parameter.shape)}"
            raise ConfigError(
                f"activation {name!r}: its parameter {key!r} has {found}; parameters need a shape of at most three "
                "dimensions."
            )
    more = [key for key in module.state_dict() if key not in named]
    if more:
        raise ConfigError(
            f"activation {name!r}: its module saves {', '.join(more)} beside its parameters; make constants buffers "
            "with persistent=False. What changes from call to call, or stands for two, cannot be kept."
        )
    return module


def make_activation(text: str, groups: int = 1) -> nn.Module:
    """Build the module of one level. torch's global random state is left as it was; :func:`reset` draws.

    Args:
        text: the activation's name, with options if it has any.
        groups: groups of the generator; a learnable activation has its own numbers in each.

    Raises:
        ConfigError: the activation or one of its options is not known or not possible.
    """
    name, options = _parse(text)
    if name in _BUILT_IN:
        return _build(name, ACTIVATIONS[name], options, groups)
    with torch.random.fork_rng(devices=[]):
        return _build(name, ACTIVATIONS[name], options, groups)


@torch.no_grad()
def reset(module: nn.Module, text: str, groups: int) -> None:
    """Give a level's module the values that a new one starts with, drawn from torch's global random state."""
    own = getattr(module, "reset_parameters", None)
    if callable(own):
        own()
        return
    values = [*module.parameters(), *module.buffers()]
    if values:
        name, options = _parse(text)
        new = _build(name, ACTIVATIONS[name], options, groups)
        for value, start in zip(values, [*new.parameters(), *new.buffers()], strict=True):
            value.copy_(start)
