"""The stage that starts generated layers from the teacher's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from adntn.baselines import Network
from adntn.decompose import obstacle, warm_start_
from adntn.describe import generated_weights, plain_name
from adntn.errors import CompressionError, ConfigError, ShapeError, TrainingStopped, nearest
from adntn.fit import fit_
from adntn.nn import GeneratedWeight
from adntn.options import check_number, check_whole
from adntn.targets import listing, matcher
from adntn.training.objective import Losses
from adntn.training.optimization import Optimization
from adntn.training.stages.base import Event, Outcome, Stage, State
from adntn.training.stages.fitting import fit_state

__all__ = ["WarmStart", "bring_in"]


@dataclass(frozen=True, kw_only=True)
class WarmStart(Stage):
    """Start generated layers from the dense teacher's weights, then bring their activations in by training.

    Each generator gets the decomposition of the weight that the teacher has under its layer's name
    (:func:`adntn.warm_start_`); one that several layers share gets theirs one below the other. With
    ``homotopy_epochs`` that is done as a linear tree, and the training's steps take the activation from the identity to
    itself, phi_t(z) = (1 - t) z + t phi(z) with t rising evenly. Without, the generator starts with its activation in
    full, at states so small that it bends little.

    Attributes:
        layers: names of generated layers, or ``"re:"`` and a pattern. A name must be there and possible; a pattern
            passes over what has no decomposition, but must match something that has.
        sweeps: of :func:`adntn.warm_start_`.
        scale: of the same.
        homotopy_epochs: in which t rises from 0 to 1; 0 sets it to 1 at once, and nothing is trained.
        optimization: how to train, for as many epochs as it says, t being 1 after the homotopy's; None means the
            defaults, for ``homotopy_epochs``.
        losses: of that training; None means cross-entropy.
        polish: steps of L-BFGS on the distance to the teacher's weights, at the end.
    """

    kind: ClassVar[str] = "warm-start"
    in_every_process: ClassVar[bool] = True
    what = "a warm-start stage"

    layers: tuple[str, ...] = ("re:.*",)
    sweeps: int = 0
    scale: float = 0.1
    homotopy_epochs: int = 0
    optimization: Optimization | None = None
    losses: Losses | None = None
    polish: int = 0

    def __post_init__(self) -> None:
        if not (isinstance(self.layers, tuple) and all(isinstance(name, str) for name in self.layers)):
            raise ConfigError(f"layers={self.layers!r} is not a list of names, as ['conv2', 're:features.*'].")
        check_whole("sweeps", self.sweeps, 0)
        check_number("scale", self.scale, above=0)
        check_whole("homotopy_epochs", self.homotopy_epochs, 0)
        check_whole("polish", self.polish, 0)
        how = self.optimization
        if how is None:
            return
        if not self.homotopy_epochs:
            raise ConfigError("optimization has no use with homotopy_epochs=0: nothing is trained.")
        if how.epochs < self.homotopy_epochs:
            raise ConfigError(
                f"homotopy_epochs={self.homotopy_epochs} is more than the {how.epochs} epochs of the optimization."
            )
        if how.patience is not None:
            raise ConfigError(
                f"patience={how.patience} might end the training before the activations are there; leave it out, and "
                "stop early in a fine-tune stage."
            )

    def run(self, state: State) -> Outcome:
        if state.teacher is None:
            raise ConfigError("a warm-start stage takes the weights of a dense teacher, and this run has none.")
        owners, skipped = self._owners(state.model)
        targets = {name: _target(owner, state.model, state.teacher) for name, owner in owners.items()}
        strength = 0.0 if self.homotopy_epochs else 1.0
        reports: dict[str, Outcome] = {}
        for done, (name, owner) in enumerate(owners.items()):
            if state.out_of_time():
                raise TrainingStopped(f"the time was over before {name!r} was started; the stage begins anew.")
            owner.activation_strength = strength
            report = warm_start_(owner, targets[name], sweeps=self.sweeps, scale=self.scale)
            reports[name] = asdict(report)
            state.tell(Event(done + 1, len(owners), f"{name}: truncation error {report.truncation_error:.3f}"))
        outcome: Outcome = {"layers": reports, "skipped": skipped}
        if self.homotopy_epochs:
            outcome["training"] = self._train(state, owners.values())
        if self.polish:
            fits = {
                name: fit_(owner, targets[name], steps=0, polish=self.polish, progress=False)
                for name, owner in owners.items()
            }
            outcome["polish"] = {name: asdict(fit) for name, fit in fits.items()}
        return outcome

    def _owners(self, model: nn.Module) -> tuple[dict[str, GeneratedWeight], dict[str, str]]:
        """Return one layer for each generator that is meant, and what patterns pass over, with the reason."""
        there = generated_weights(model)
        chosen: dict[str, GeneratedWeight] = {}
        skipped: dict[str, str] = {}
        for entry in self.layers:
            if entry.startswith("re:"):
                matches = matcher(entry, "layers")
                found = {name: layer for name, layer in there.items() if matches(name)}
            elif entry in there:
                found = {entry: there[entry]}
            else:
                raise CompressionError(
                    f"layers names {entry!r}, which is not generated; {listing(there)} are.{nearest(entry, there)}"
                )
            possible = 0
            for name, layer in found.items():
                why = obstacle(layer.config)
                if why is None:
                    possible += 1
                    chosen[name] = layer
                elif entry.startswith("re:"):
                    skipped[name] = why
                else:
                    raise CompressionError(f"{name!r} cannot be started from a weight: {why}")
            if not possible:
                raise CompressionError(
                    f"layers: {entry!r} matches nothing that can be started; generated are {listing(there)}."
                )
        owners: dict[Network, tuple[str, GeneratedWeight]] = {}
        for name, layer in chosen.items():
            owners.setdefault(layer._network, (name, layer))
        return dict(owners.values()), skipped

    def _train(self, state: State, owners: Iterable[GeneratedWeight]) -> Outcome:
        how = self.optimization or Optimization(epochs=self.homotopy_epochs)
        owners = list(owners)
        fitted = fit_state(state, how, self.losses, on_step=bring_in(owners, self.homotopy_epochs / how.epochs))
        for owner in owners:  # a run that had ended already made no step
            owner.activation_strength = 1.0
        return asdict(fitted)


def bring_in(owners: Iterable[GeneratedWeight], share: float) -> Callable[[int, int], None]:
    """Return what, called before each step, brings the activations of some generators in.

    Args:
        owners: one layer of each generator.
        share: of all steps, after which they act in full.
    """
    owners = list(owners)

    def before(step: int, total: int) -> None:
        strength = min(1.0, (step + 1) / (share * total))
        for owner in owners:
            owner.activation_strength = strength

    return before


def _target(owner: GeneratedWeight, model: nn.Module, teacher: nn.Module) -> Tensor:
    """Return the teacher's weights that a generator is to make, those of layers that share it one below the other."""
    users = {
        user.rows or (0, 0): _dense_weight(name, user, teacher)
        for name, user in generated_weights(model).items()
        if user._network is owner._network
    }
    target = torch.cat([users[rows] for rows in sorted(users)])
    if tuple(target.shape) != owner.blueprint.shape:
        raise ShapeError(
            f"a generator makes a weight of shape {owner.blueprint.shape}, and the layers that it is made for have "
            f"{tuple(target.shape)} in the teacher."
        )
    return target


def _dense_weight(name: str, layer: GeneratedWeight, teacher: nn.Module) -> Tensor:
    modules = {plain_name(full): module for full, module in teacher.named_modules()}
    parent, _, last = name.rpartition(".")
    weight = getattr(modules.get(name), "weight", None)
    if name not in modules:
        weight = getattr(modules.get(parent), last, None)
    if not isinstance(weight, Tensor):
        raise CompressionError(f"{name!r} is generated in the model, and has no weight in the teacher.")
    if tuple(weight.shape) != layer.shape:
        raise ShapeError(
            f"{name!r} makes a weight of shape {layer.shape}, and has one of {tuple(weight.shape)} in the teacher."
        )
    return weight.detach()
