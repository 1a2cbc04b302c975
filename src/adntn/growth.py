"""Growing a trained generator, in place (paper, Section 3.4, Eq. 12).

Most growth is exact: the weight stays as it is, and what is new has a gradient (:mod:`adntn.embedding`). The rest is a
refit to the weight that the generator makes, with the error reported. Layers keep their place and names, layers that
share a generator grow together, and the optimiser goes on with what it had.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from adntn.adjoint.reverse import full_precision
from adntn.baselines import network
from adntn.embedding import Embedding, embed
from adntn.errors import CompressionError, ConfigError
from adntn.fit import FitOptions, FitReport, fit_, relative_error
from adntn.generator import Generator, GeneratorModule
from adntn.memory import check_memory
from adntn.optimizers import Carried, carry_over
from adntn.targets import held_by_optimizer
from adntn.topology import Blueprint, GeneratorConfig

__all__ = ["GrowthReport", "grow_"]

# Of an exact step, in float64. An activation that is no function of single entries would not come that near.
_EXACT = 1e-9


@dataclass(frozen=True)
class GrowthReport:
    """What :func:`grow_` did.

    Attributes:
        before: config of the old generator.
        after: config of the new one.
        exact: whether the weight stayed as it was; else the new generator was fitted to it.
        reason: why it could not stay; empty where it did.
        relative_error: ``||W' - W|| / ||W||`` between the weights before and after, worked out in float64; NaN on the
            meta device.
        parameters_before: numbers stored before.
        parameters_after: numbers stored now.
        layers: modules that share the generator and grew together.
        optimizer: what became of the optimisers' parameters and state.
        fit: of a refit, else None.
    """

    before: GeneratorConfig
    after: GeneratorConfig
    exact: bool
    reason: str
    relative_error: float
    parameters_before: int
    parameters_after: int
    layers: int
    optimizer: Carried
    fit: FitReport | None = None

    def __str__(self) -> str:
        how = "the weight stays as it is" if self.exact else f"refitted, since {self.reason}"
        return (
            f"{self.parameters_before:,} -> {self.parameters_after:,} numbers, {how}: "
            f"relative error {self.relative_error:.2g}; {self.optimizer}"
        )


@torch.inference_mode(mode=False)
@torch.no_grad()
def grow_(
    module: GeneratorModule,
    *,
    optimizer: Optimizer | Sequence[Optimizer] = (),
    exact: bool = False,
    noise: float = 0.1,
    fit: FitOptions | None = None,
    progress: bool | None = None,
    **changes: Any,
) -> GrowthReport:
    """Give a generator, or a generated layer in its model, another config, in place, and keep the weight it makes.

    Exact, to rounding, are a larger ``bond_dim``; disentanglers, ``topology="attn"`` or ``"mera"`` on a ttn and
    ``boundary_layers=2``; more ``terms``; ``gate=True``; more ``columns`` of a brick wall within its blocks; a larger
    rank of ``"tt"`` and ``"lowrank"``. What is new starts so that it has a gradient. Everything else is a refit to the
    present weight (:func:`adntn.fit_`), with the optimiser's state of what is refitted dropped: ``groups``, ``radix``,
    ``order``, ``latent_order``, smaller sizes, and a larger bond where a ``norm`` sees the whole state.

    A quantised generator grows by its float numbers and stays quantised. Grids of larger cores may be others, so the
    report's error, of the weights on their grids, may be more than rounding then.

    Under DDP or FSDP, grow first, then wrap. New numbers are drawn from torch's global random state.

    Args:
        module: a generator or a generated layer. Modules that share its root and cores grow with it.
        optimizer: those that train it. A parameter that grows keeps its place, group and state there, with zeros for
            what is new; a new parameter joins the group of the one before it. State that is not of a parameter's shape
            (Adafactor's, L-BFGS') is dropped.
        exact: raise where the weight could not stay as it is, instead of refitting.
        noise: deviation of new children of old parents, in units of the root mean square of their core.
        fit: how to refit; None means the defaults.
        progress: whether a refit shows a progress bar; None means on a terminal only.
        **changes: options of :class:`adntn.GeneratorConfig`, as ``bond_dim=4``.

    Returns:
        A report; print it.

    Raises:
        ConfigError: an option is unknown or impossible, or with ``exact``, needs a refit.
        CompressionError: an optimiser that was not given holds a parameter of the module, or FSDP has sharded it.
        GeneratorTooLargeError: the new generator would not fit into memory. In every case nothing has been changed.

    Example:
        >>> generator = adntn.Generator((64, 64))
        >>> optimizer = torch.optim.AdamW(generator.parameters())
        >>> report = adntn.grow_(generator, bond_dim=4, optimizer=optimizer)
        >>> report.exact, report.relative_error < 1e-12
        (True, True)
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    if not changes:
        raise ConfigError("nothing to grow: name an option of the new config, as grow_(layer, bond_dim=4).")
    old, blueprint = module.blueprint, Blueprint(module.blueprint.shape, module.config.replace(**changes))
    users = list(module.users())
    floats = module.bare()
    floats._quantization = None  # what grows is the float numbers; on their grid they are when they are used
    embedding = embed(old, blueprint)
    refuse(module, users, blueprint, embedding, exact, optimizers)
    check_memory(blueprint, module.device)
    fitted, error, reason = None, float("nan"), embedding if isinstance(embedding, str) else embedding.doubt
    if module.device.type == "meta":
        new = Generator(blueprint.shape, blueprint.config, std=module.std, device="meta", dtype=module.dtype)
        new.activation_strength = module.activation_strength
        new.requires_grad_(is_trained(module))
    else:
        with full_precision(module.device):
            new, weight, reason = _make(floats, blueprint, embedding, noise, exact=exact)
            fitted = fit_(new, weight, fit, progress=progress, name="refit") if reason else None
            if module._quantization is not None:
                weight, new._quantization = module.bare_copy().double()(), module._quantization
            error = relative_error(new.bare_copy().double()(), weight)
    new._quantization = module._quantization
    was = module.bare()
    replace_all(users, was, new)
    carried = carry_over(
        optimizers,
        dict(was.named_parameters()),
        dict(new.named_parameters()),
        embedding if isinstance(embedding, Embedding) else None,
    )
    return GrowthReport(
        before=old.config,
        after=blueprint.config,
        exact=not reason,
        reason=reason,
        relative_error=error,
        parameters_before=old.num_parameters,
        parameters_after=blueprint.num_parameters,
        layers=len(users),
        optimizer=carried,
        fit=fitted,
    )


def refuse(
    module: GeneratorModule,
    users: Sequence[GeneratorModule],
    blueprint: Blueprint,
    embedding: Embedding | str,
    exact: bool,
    optimizers: Sequence[Optimizer],
) -> None:
    """Raise what stands in the way, before anything is changed."""
    module.refuse_common_cores("changed")
    if exact:
        _insist(embedding if isinstance(embedding, str) else embedding.doubt)
    if any(getattr(user, "execution", None) == "factored" for user in users):
        made = network(blueprint)
        # What runs through a sum of Kronecker products goes on so if it still is one.
        if made.ranks is None and (module.ranks is not None or getattr(made, "kronecker", None) is None):
            raise ConfigError(
                f"execution='factored' was asked for, and order={blueprint.config.order!r} has no split into factors; "
                "set execution='auto' first."
            )
    parameters = dict(module.generator_parameters())
    if any(hasattr(parameter, "device_mesh") for parameter in parameters.values()):
        raise CompressionError("FSDP has sharded this generator's parameters; grow first, then shard.")
    why = held_by_optimizer({id(parameter): name for name, parameter in parameters.items()}, optimizers)
    if why is not None:
        raise CompressionError(f"{why}. Give it as optimizer=, or delete it first.")


def replace_all(users: Sequence[GeneratorModule], was: Generator, new: Generator) -> None:
    """Put the new generator into all modules, or none."""
    try:
        for user in users:
            user._replace(new)
    except Exception:  # the execution that a layer was asked for may not be possible
        for user in users:
            user._replace(was)
        raise


def _insist(reason: str) -> None:
    if reason:
        raise ConfigError(f"this growth is not exact: {reason}. With exact=False it is a refit.")


def _make(
    module: GeneratorModule, blueprint: Blueprint, embedding: Embedding | str, noise: float, *, exact: bool
) -> tuple[Generator, Tensor, str]:
    """Return the new generator before any fit, the weight to keep, and why it does not keep it, if so."""
    weight = module.bare_copy().double()()
    if isinstance(embedding, str):
        return drawn_anew(module, blueprint, weight).requires_grad_(is_trained(module)), weight, embedding
    new = _embedded(module, embedding, weight, noise)
    if relative_error(new.bare_copy().double()(), weight) < _EXACT or not bool(torch.isfinite(weight).all()):
        return new, weight, ""
    reason = embedding.doubt or f"activation={blueprint.config.activation!r} is no function of single entries"
    if exact:
        _insist(reason)
    return new.bare_copy(), weight, reason


def drawn_anew(module: GeneratorModule, blueprint: Blueprint, weight: Tensor) -> Generator:
    """Return a generator drawn anew, its weight of the same deviation."""
    std = float(weight.std(correction=0))
    usable = 0.0 < std < float("inf")
    made = Generator(
        blueprint.shape,
        blueprint.config,
        std=std if usable else None,
        device=module.device,
        dtype=module.dtype,
    )
    made.std, made.activation_strength = module.std, module.activation_strength
    return made.train(module.training)


def _embedded(module: GeneratorModule, embedding: Embedding, weight: Tensor, noise: float) -> Generator:
    """Return the new generator, made of the very parameters that have not changed, and of new ones."""
    blueprint, old = embedding.new, dict(module.generator_parameters())
    if blueprint.config.trees == module.config.trees:
        fresh: dict[str, Tensor] = {}
        made = Generator(blueprint.shape, blueprint.config, std=module.std, device="meta", dtype=module.dtype)
        made.activation = module.activation
    else:
        made = drawn_anew(module, blueprint, weight)
        fresh = dict(made.generator_parameters())
    for name in blueprint.buffer_shapes:
        setattr(made, name, getattr(module, name))
    for name, value in embedding.values(old, fresh, noise).items():
        parameter = old.get(name)
        if parameter is None or not _equal(parameter, value):
            sources = [old[source] for source in embedding.sources(name)]
            trained = any(p.requires_grad for p in sources) if sources else is_trained(module)
            parameter = nn.Parameter(value.to(module.device, module.dtype), requires_grad=trained)
        path = name.split(".")
        setattr(made.get_submodule(".".join(path[:-1])), path[-1], parameter)
    return made.train(module.training)


def _equal(parameter: Tensor, value: Tensor) -> bool:
    return parameter.shape == value.shape and torch.equal(parameter.to("cpu", torch.float64), value)


def is_trained(module: GeneratorModule) -> bool:
    return any(parameter.requires_grad for _, parameter in module.generator_parameters())
