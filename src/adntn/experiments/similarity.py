"""How alike two networks' features are, layer by layer."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from adntn.describe import plain_name
from adntn.errors import CompressionError, nearest
from adntn.targets import is_compiled_wrapper, listing
from adntn.training.modes import in_its_dtype

__all__ = ["common_layers", "feature_similarity", "linear_cka"]

# The unbiased estimate needs as many.
_LEAST = 4


def linear_cka(first: Tensor, second: Tensor) -> float | None:
    """Return the linear centred kernel alignment of two networks' features of the same images, without bias.

    1 for features that are equal up to a rotation, a shift and one scale, about 0 for independent ones (Kornblith et
    al., arXiv:1905.00414, with the unbiased estimate of Song et al. 2012).

    Args:
        first: shape ``(n, ...)``, at least 4 images.
        second: shape ``(n, ...)``; other sizes than ``first`` has are possible.

    Returns:
        A number in -1 ... 1; None where the features are the same for all images, or these are fewer than 4.
    """
    sums = _Sums()
    sums.add(_gram(first), _gram(second))
    return sums.alignment()


def feature_similarity(
    model: nn.Module,
    teacher: nn.Module,
    batches: Iterable[Tensor],
    layers: Sequence[str] | None = None,
) -> dict[str, float | None]:
    """Return the linear CKA of two networks' features after each of some layers.

    The estimate is the unbiased one, summed up batch by batch (Nguyen et al., arXiv:2010.15327), so that of the
    features nothing is kept but a matrix of batch x batch a layer. Batches of fewer than 4 images are left out. Of a
    layer that is called more than once in a pass the last output counts.

    Args:
        model: a network.
        teacher: another, with layers of the same names.
        batches: of inputs, as both networks take them but for their dtype; the larger, the less noise.
        layers: names of modules that both have; None means those layers with weights that both have and call.

    Returns:
        A number a layer, as of :func:`linear_cka`.

    Raises:
        CompressionError: a layer is not in both networks, or gives no features: it was not called, or its output is
            not a tensor with a row an image.
    """
    # Hooks that come after the compilation are not called.
    model, teacher = _plain(model), _plain(teacher)
    names = common_layers(model, teacher) if layers is None else list(layers)
    sums = {name: _Sums() for name in names}
    grams: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    with contextlib.ExitStack() as stack:
        for network, taken in zip((model, teacher), grams, strict=True):
            stack.enter_context(_taking(network, names, taken))
        stack.enter_context(torch.no_grad())
        for inputs in batches:
            if len(inputs) < _LEAST:
                continue
            for network, taken in zip((model, teacher), grams, strict=True):
                taken.clear()
                network(in_its_dtype(network, inputs))
            for name in names:
                pair = [taken.get(name) for taken in grams]
                ours, theirs = (gram if gram is not None and len(gram) == len(inputs) else None for gram in pair)
                if ours is not None and theirs is not None:
                    sums[name].add(ours, theirs)
                elif layers is not None:
                    whose = "the model" if ours is None else "the teacher"
                    raise CompressionError(
                        f"layer {name!r} of {whose} gives no features for {len(inputs)} images: it is not called, or "
                        "its output is no tensor with a row an image. Leave it out of layers."
                    )
    return {name: each.alignment() for name, each in sums.items() if each.count or layers is not None}


def common_layers(model: nn.Module, teacher: nn.Module) -> list[str]:
    """Return the names of layers with weights that two networks have in common, in the teacher's order.

    Layers of two axes or more count, not norms; a generated layer counts as the one in whose place it is.
    """
    ours = _modules(model)
    return [
        name
        for name, module in _modules(teacher).items()
        if name in ours and any(p.ndim >= 2 for p in module.parameters(recurse=False))
    ]


def _plain(network: nn.Module) -> nn.Module:
    inner = network._orig_mod if is_compiled_wrapper(network) else network
    assert isinstance(inner, nn.Module)
    return inner


def _modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return modules by the names that they have in a network that is not compiled."""
    return {plain_name(name): module for name, module in network.named_modules()}


@contextlib.contextmanager
def _taking(network: nn.Module, names: Sequence[str], taken: dict[str, Tensor]) -> Iterator[None]:
    """Put the Gram matrix of each layer's last output into a dictionary, until the block ends."""
    modules: Mapping[str, nn.Module] = _modules(network)
    handles = []

    def hook_of(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: object, output: object) -> None:
            features = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(features, Tensor) and features.ndim >= 2 and features.is_floating_point():
                taken[name] = _gram(features)
            else:
                taken.pop(name, None)

        return modules[name].register_forward_hook(hook)

    try:
        for name in names:
            if name not in modules:
                raise CompressionError(
                    f"there is no layer {name!r} in both networks; one has {listing(list(modules)[1:])}."
                    f"{nearest(name, modules)}"
                )
            handles.append(hook_of(name))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _gram(features: Tensor) -> Tensor:  # shape: (n, ...) -> (n, n), float64
    flat = features.detach().flatten(1)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    # A shift does not change the alignment; without it float32 is enough for the products.
    shifted = flat - flat.mean(dim=0)
    if shifted.numel() and shifted.abs().amax() <= 8 * torch.finfo(flat.dtype).eps * flat.abs().amax():
        shifted.zero_()  # nothing but rounding
    return (shifted @ shifted.T).double()


def _centred(gram: Tensor) -> Tensor:  # shape: (n, n)
    """Return a Gram matrix without diagonal, its rows and columns summing to zero (Székely & Rizzo 2014)."""
    count = len(gram)
    without = gram - torch.diag(gram.diagonal())
    rows = without.sum(dim=1)
    whole = rows.sum() / ((count - 1) * (count - 2))
    return (without - (rows[:, None] + rows[None, :]) / (count - 2) + whole).fill_diagonal_(0)


class _Sums:
    """Unbiased HSIC of two networks' features, and of each with itself, over batches."""

    def __init__(self) -> None:
        self.count, self.both, self.first, self.second = 0, 0.0, 0.0, 0.0

    def add(self, first: Tensor, second: Tensor) -> None:  # shape: (n, n) each
        count = len(first)
        if count < _LEAST:
            return
        one, other = _centred(first), _centred(second)
        # Each batch's sum over n (n - 3) is an unbiased estimate; it counts as often as the batch has images.
        weight = 1 / (count - 3)
        self.count += count
        self.both += weight * float((one * other).sum())
        self.first += weight * float((one * one).sum())
        self.second += weight * float((other * other).sum())

    def alignment(self) -> float | None:
        return self.both / math.sqrt(self.first) / math.sqrt(self.second) if self.first and self.second else None
