"""Which parts of a model are fitted alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from adntn.describe import generated_weights, plain_name
from adntn.errors import CompressionError, ConfigError, nearest
from adntn.nn import GeneratedParameter, GeneratedWeight, StandIn
from adntn.targets import listing, matcher
from adntn.training.blocks.jobs import BlockFit, trained_parameters

__all__ = ["Block", "check_names", "find_blocks"]


@dataclass(frozen=True, eq=False)
class Block:
    """A part of a model that is fitted alone.

    Attributes:
        name: of the generator's first weight where weights are fitted, else of the module.
        module: the generated weight, or the layer or module.
        weights: all generated weights in it, or made by its generator, by their names in the model.
    """

    name: str
    module: nn.Module
    weights: Mapping[str, GeneratedWeight]

    def parameters(self, how: BlockFit) -> dict[str, nn.Parameter]:
        """Return what is trained of it, by name."""
        if how.objective == "weight":
            assert isinstance(self.module, GeneratedWeight)
            return dict(self.module.generator_parameters())
        return trained_parameters(self.module, dense=how.dense)


# --- which they are -------------------------------------------------------------------------------------------------


def find_blocks(model: nn.Module, how: BlockFit, layers: Sequence[str], blocks: Sequence[str]) -> list[Block]:
    """Return the blocks of a model.

    Args:
        model: with generated layers.
        how: they are to be fitted.
        layers: names, or ``"re:"`` and patterns, of generated weights or their modules, each to be fitted alone.
        blocks: the same of modules that hold some, each to be fitted as a whole.

    Raises:
        CompressionError: something is not there, is in two blocks, or cannot be fitted so.
    """
    weights = generated_weights(model)
    if not weights:
        raise CompressionError("the model has no generated layer; compress it before the stage 'blocks'.")
    if how.objective == "weight":
        if blocks:
            raise ConfigError(
                "objective='weight' fits each generator to its own weight, so there are no blocks: name the layers in "
                "layers, or take objective='outputs'."
            )
        chosen = _chosen(weights, {name: name for name in weights}, layers)
        return list(_by_generator(weights, chosen))
    named = {plain_name(name): module for name, module in model.named_modules()}
    found = _whole_blocks(named, blocks)
    inside = {id(module) for block in found for module in block.module.modules()}
    alone = {name: weight for name, weight in weights.items() if id(weight) not in inside}
    homes = {name: _home(name, weight, named) for name, weight in alone.items()}
    chosen = _chosen(alone, homes, layers, may_be_none=bool(found))
    for name in chosen:
        if isinstance(alone[name], GeneratedParameter):
            raise CompressionError(
                f"{name!r} is one parameter, which has no outputs of its own; name its module in "
                f"blocks=[{homes[name]!r}], or take objective='weight'."
            )
    found += [_block(home, named[home]) for home in dict.fromkeys(homes[name] for name in chosen)]
    _check(model, found, how)
    return found


def _chosen(
    weights: dict[str, GeneratedWeight], homes: dict[str, str], patterns: Sequence[str], *, may_be_none: bool = False
) -> list[str]:
    """Return the names of the weights that patterns mean, by their own names or by those of their modules."""
    chosen: dict[str, None] = {}
    for pattern in patterns:
        matches = matcher(pattern, "layers")
        met = [name for name in weights if matches(name) or matches(homes[name])]
        if not met and not (may_be_none and pattern == "re:.*"):
            hint = "" if pattern.startswith("re:") else nearest(pattern, weights)
            raise CompressionError(f"layers: {pattern!r} means no generated layer of {listing(weights)}.{hint}")
        chosen.update(dict.fromkeys(met))
    return list(chosen)


def _by_generator(weights: dict[str, GeneratedWeight], chosen: Sequence[str]) -> Iterator[Block]:
    seen: set[int] = set()
    for name in chosen:
        weight = weights[name]
        if id(weight._network) not in seen:
            seen.add(id(weight._network))
            users = {other: each for other, each in weights.items() if each.shares_generator_with(weight)}
            first = next(iter(users))
            yield Block(first, users[first], users)


def _whole_blocks(named: dict[str, nn.Module], patterns: Sequence[str]) -> list[Block]:
    found: dict[str, Block] = {}
    for pattern in patterns:
        matches = matcher(pattern, "blocks")
        met = [_block(name, module) for name, module in named.items() if name and matches(name)]
        if not pattern.startswith("re:") and not met:
            raise CompressionError(f"blocks: the model has no module {pattern!r}.{nearest(pattern, named)}")
        met = [block for block in met if block.weights]
        if not met:
            raise CompressionError(f"blocks: nothing that {pattern!r} means holds a generated layer.")
        found.update((block.name, block) for block in met)
    for one in found.values():
        for other in found.values():
            if one is not other and other.module in one.module.modules():
                raise CompressionError(f"blocks: {other.name!r} is a part of {one.name!r}; name one of them.")
    return list(found.values())


def _block(name: str, module: nn.Module) -> Block:
    weights = generated_weights(module)
    return Block(name, module, {".".join(filter(None, (name, inner))): weight for inner, weight in weights.items()})


def _home(name: str, weight: GeneratedWeight, named: dict[str, nn.Module]) -> str:
    """Return the name of the module whose outputs a weight is in: an attention's are not those of one projection."""
    if isinstance(weight, GeneratedParameter):
        return name.rpartition(".")[0]
    home = parent = name
    while parent:
        if isinstance(named.get(parent), StandIn):
            home = parent
        parent = parent.rpartition(".")[0]
    return home


def _check(model: nn.Module, blocks: Sequence[Block], how: BlockFit) -> None:
    """Refuse blocks without anything to train, and such as train what stands outside of them too."""
    holders: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        holders.setdefault(id(parameter), []).append(plain_name(name))
    for block in blocks:
        trained = block.parameters(how)
        if not trained:
            raise CompressionError(f"block {block.name!r} has nothing to train: all of its parameters are frozen.")
        for parameter in trained.values():
            outside = [name for name in holders[id(parameter)] if not name.startswith(f"{block.name}.")]
            if outside and not _same_module(model, block, outside):
                raise CompressionError(
                    f"block {block.name!r} shares its generator with {listing(outside, 4)}; name a block that holds "
                    "both, or take objective='weight', which fits a generator to all weights that it makes."
                )


def _same_module(model: nn.Module, block: Block, names: Sequence[str]) -> bool:
    """Return whether names of parameters are but further names of a block that stands in several places."""
    places = [plain_name(n) for n, m in model.named_modules(remove_duplicate=False) if m is block.module]
    return all(any(name.startswith(f"{place}.") for place in places) for name in names)


def check_names(model: nn.Module, layers: Sequence[str], blocks: Sequence[str]) -> None:
    """Raise what is wrong with names for a model whose layers are not generated yet.

    Raises:
        CompressionError: it has no such module or parameter.
    """
    modules = {plain_name(name) for name, _ in model.named_modules(remove_duplicate=False)}
    parameters = {plain_name(name) for name, _ in model.named_parameters(remove_duplicate=False)}
    for option, patterns, known in (("layers", layers, modules | parameters), ("blocks", blocks, modules)):
        for pattern in patterns:
            matches = matcher(pattern, option)
            if not any(matches(name) for name in known):
                hint = "" if pattern.startswith("re:") else nearest(pattern, sorted(known))
                raise CompressionError(f"{option}: the model has nothing that {pattern!r} means.{hint}")
