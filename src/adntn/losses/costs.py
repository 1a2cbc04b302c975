"""The time that generated layers are predicted to take, as a loss that gates can lower."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from adntn.activations import make_activation
from adntn.baselines import network
from adntn.errors import ConfigError, check_choice
from adntn.execution.choices import MODES
from adntn.execution.counting import Count
from adntn.execution.machine import profile_for, shipped
from adntn.execution.plan import seconds
from adntn.execution.rehearsal import WayCount, count_way
from adntn.generator import Generator
from adntn.levels import Level
from adntn.nn import GeneratedParameter, GeneratedWeight
from adntn.options import check_number, check_whole
from adntn.topology import Blueprint

__all__ = ["PredictedSeconds", "predicted_seconds", "predicted_time"]


@dataclass(frozen=True)
class PredictedSeconds:
    """What the planner says of a generated layer, and of the parts of it that stand behind gates.

    Attributes:
        layer: seconds of a call of the layer as it is, all gates open.
        dense: of the dense layer in its place.
        term: by how many they are fewer with one tree less of each group's sum; 0 where there is one alone.
        parts: by how many they are fewer without what stands behind all gates of a name, as ``"gate.mix.2.0"``.
    """

    layer: float
    dense: float
    term: float
    parts: Mapping[str, float]


def predicted_time(layers: Mapping[GeneratedWeight, int], *, mode: str = "rebuilt", width: float = 0.1) -> Tensor:
    """Return the time that layers are predicted to take, over that of the dense layers in their place.

    ``sum_layers T(g) / sum_layers T_dense``: the paper's Section 5 asks for hardware-aware terms without an equation. T
    is the time that :func:`adntn.plan` predicts, and what stands behind a gate (Definition 2) counts by how far it is
    open::

        T(g) = T - sum_trees (1 - s(g_tree)) D_tree - sum_trees s(g_tree) sum_gates (1 - s(g)) D_gate
        s(g) = (1 + width) |g| / (|g| + width), and 1 for |g| > 1

    D is by how much the planner's time is less without the part: one tree less in the sum, one layer of disentanglers
    less, shared evenly among its gates, or a level without its activation, each with the layer run the same way. So
    T(g) is the planner's own number where all gates are open, and where one tree, one layer of gates or one activation
    is closed; between these it is interpolated. A closed gate saves that time once it is pruned, not before. The
    concave s stands for the number of open gates (as in reweighted l1, Candès, Wakin & Boyd 2008): it pulls hardest on
    gates that are nearly closed, and hardly on open ones.

    Args:
        layers: and the number of positions of each (rows of a linear layer's input, places of a convolution's output in
            the whole batch; see :meth:`adntn.nn.GeneratedLayer.way_for`). Without gates a layer's time is a constant.
        mode: ``"training"``; ``"rebuilt"``, without gradients, the making of factors or weight included; or ``"kept"``,
            without it, where only what makes the factors larger costs anything.
        width: of s around zero, in units of a gate.

    Returns:
        A scalar without unit; 1 means as long as dense layers.

    Raises:
        ConfigError: there is no layer, one is a parameter of another module, which has no time of its own, or an option
            is not possible.

    Example:
        >>> layer = adntn.nn.Linear(512, 512, config=adntn.GeneratorConfig(topology="mera", gate=True))
        >>> adntn.losses.predicted_time({layer: 128}).backward()
    """
    check_number("width", width, above=0)
    if not layers:
        raise ConfigError("a predicted time needs at least one layer: {layer: positions}.")
    known = {layer: predicted_seconds(layer, positions, mode=mode) for layer, positions in layers.items()}
    time = torch.stack([_expected(layer, times, width) for layer, times in known.items()]).sum()
    return time / sum(times.dense for times in known.values())


_SECONDS: dict[Hashable, PredictedSeconds] = {}
_MOST = 4096


def predicted_seconds(layer: GeneratedWeight, positions: int, *, mode: str = "rebuilt") -> PredictedSeconds:
    """Return the predicted seconds of a layer and of its gated parts, by the machine's profile; nothing is computed.

    Args:
        layer: as for :func:`predicted_time`, as are ``positions`` and ``mode``.
        positions: at least 1.
        mode: of the call.

    Raises:
        ConfigError: the layer is not one that meets an input, or an option is not possible.
    """
    check_choice("mode", mode, MODES)
    check_whole("positions", positions, 1)
    if not isinstance(layer, GeneratedWeight) or isinstance(layer, GeneratedParameter):
        raise ConfigError(
            f"a {type(layer).__name__} meets no input, so it has no time beside a dense layer's; give generated layers."
        )
    profile, way = profile_for(layer.device) or shipped(), layer.way_for(positions, mode)
    described = (type(layer), layer.blueprint, layer.rows, layer._backward, layer.dtype, *layer._options())
    key = (*described, getattr(layer, "bias", None) is None, positions, mode, way, profile)
    if key in _SECONDS:
        return _SECONDS[key]

    def timed(change: Callable[[GeneratedWeight], object] = lambda twin: None, way: str = way) -> WayCount:
        twin = layer._on_meta()
        change(twin)
        return count_way(twin, way)

    def time(count: WayCount) -> float:
        return seconds(count, mode, profile, layer.dtype, (positions,))[0]

    config, levels = layer.config, layer.blueprint.levels
    whole = time(timed())
    term, parts = 0.0, {}
    if config.gate:
        if config.terms > 1:
            term = max(0.0, whole - time(timed(_with_one_term))) / (config.terms - 1)
        for level in levels[:-1]:
            less = time(timed(partial(_without_activation, number=level.number)))
            parts[f"gate.level.{level.number}"] = max(0.0, whole - less)
        for level in levels:
            for place, gates in enumerate(level.gates):
                less = time(timed(partial(_without_mixer, number=level.number, place=place)))
                stacks = Counter(core.stack for core in gates)
                for name, count in stacks.items():
                    parts[f"gate.{name}"] = max(0.0, whole - less) * count / len(gates)
    dense = replace(timed(way="dense"), making=Count(()))
    if len(_SECONDS) > _MOST:
        _SECONDS.clear()
    _SECONDS[key] = PredictedSeconds(whole, time(dense), term, parts)
    return _SECONDS[key]


def _expected(layer: GeneratedWeight, times: PredictedSeconds, width: float) -> Tensor:
    trees = layer.config.trees

    def shares(name: str) -> Tensor:  # shape: (trees, gates in each)
        size = layer.get_core(name).float().abs().reshape(trees, -1)
        return ((1 + width) * size / (size + width)).where(size <= 1, 1.0)

    total = torch.tensor(times.layer, device=layer.device)
    tree = torch.ones(trees, 1, device=layer.device)
    if times.term:
        tree = shares("gate.term")
        total = total - (1 - tree).sum() * times.term / layer.config.groups
    for name, saved in times.parts.items():
        if saved:
            closed = 1 - shares(name)
            total = total - (tree * closed).sum() * saved / closed.numel()
    return total


# --- layers without a part ------------------------------------------------------------------------------------------


def _with_one_term(twin: GeneratedWeight) -> None:
    generator = Generator(twin.blueprint.shape, twin.config.replace(terms=1), device="meta", dtype=twin.dtype)
    twin._replace(generator)


def _without_activation(twin: GeneratedWeight, number: int) -> None:
    twin.activation[str(number)] = make_activation("identity", twin.config.trees)


def _without_mixer(twin: GeneratedWeight, number: int, place: int) -> None:
    thinned = _Thinned(twin.blueprint.shape, twin.config, (number, place))
    twin.blueprint = thinned
    twin._use(network(thinned))


@dataclass(frozen=True)
class _Thinned(Blueprint):
    """A blueprint without one layer of disentanglers.

    Attributes:
        mixer: the level's number, and its place in the level.
    """

    mixer: tuple[int, int] = (0, 0)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        number, place = self.mixer
        levels = list(Blueprint(self.shape, self.config).levels)
        mixers = levels[number - 1].mixers
        levels[number - 1] = replace(levels[number - 1], mixers=mixers[:place] + mixers[place + 1 :])
        return tuple(levels)
