"""All gradients of a generator by the equations alone, against autograd's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from adjoint_cases import CASES, build
from conformance_cases import ORDERS, TOPOLOGIES, Case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adntn import Generator, GeneratorConfig
from adntn.adjoint import weight_adjoint
from adntn.errors import ConfigError, ShapeError
from adntn.topology import BASELINES


def autograds(gen: Generator, upstream: Tensor) -> dict[str, Tensor]:
    named = dict(gen.generator_parameters())
    gradients = torch.autograd.grad(gen(), list(named.values()), upstream, allow_unused=True, materialize_grads=True)
    return dict(zip(named, gradients, strict=True))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_are_autograds_and_need_none(case: Case, no_autograd: pytest.MonkeyPatch) -> None:
    gen = build(case)
    upstream = torch.randn(gen.shape, dtype=torch.float64)
    with torch.inference_mode():
        gradients = weight_adjoint(gen, upstream)
    no_autograd.undo()
    expected = autograds(gen, upstream)
    assert gradients.keys() == expected.keys()
    # A gradient that is zero but for rounding has no relative error: the largest of the generator is its measure.
    largest = max(float(e.abs().max()) for e in expected.values())
    for name, ours in gradients.items():
        assert ours.shape == expected[name].shape, name
        error = float((ours - expected[name]).norm() / max(float(expected[name].norm()), 1e-3 * largest))
        assert error < 1e-10, name


def test_the_fixture_refuses(no_autograd: pytest.MonkeyPatch) -> None:
    gen = Generator((8, 8))
    with pytest.raises(AssertionError, match="automatic"):
        gen().sum().backward()


def test_the_docstring_tells_the_truth() -> None:
    gen = Generator((64, 64), dtype=torch.float64)
    gen().square().sum().backward()
    gradients = weight_adjoint(gen, 2 * gen())
    assert gen.root.grad is not None
    assert torch.allclose(gradients["root"], gen.root.grad)
    assert not any(g.requires_grad for g in gradients.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_gradients_have_their_parameters_dtype_and_are_computed_in_float32(dtype: torch.dtype) -> None:
    gen = Generator((17, 33), GeneratorConfig(topology="mera", activation="prelu", gate=True), dtype=dtype)
    exact = Generator((17, 33), gen.config, dtype=torch.float64)
    exact.load_state_dict(gen.state_dict())
    upstream = torch.randn(17, 33)
    for autocast in (False, True):
        with torch.autocast("cpu", enabled=autocast):
            gradients = weight_adjoint(gen, upstream)
        for name, expected in weight_adjoint(exact, upstream.double()).items():
            assert gradients[name].dtype == dtype
            error = (gradients[name].double() - expected).norm() / expected.norm()
            assert error < max(torch.finfo(dtype).eps, 1e-5), name


def test_an_upstream_of_another_shape_is_an_error_that_names_both() -> None:
    with pytest.raises(ShapeError, match=r"\(8, 9\).*\(9, 8\)"):
        weight_adjoint(Generator((8, 9)), torch.zeros(9, 8))


@pytest.mark.parametrize("topology", BASELINES)
def test_a_baseline_has_no_adjoint(topology: str) -> None:
    with pytest.raises(ConfigError, match=topology):
        weight_adjoint(Generator((8, 8), GeneratorConfig(topology=topology)), torch.zeros(8, 8))


class Arrays(TorchDispatchMode):
    """Records the most dimensions and entries of anything made, and how many matrix products there were."""

    def __init__(self) -> None:
        super().__init__()
        self.dims = self.largest = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.dims = max([self.dims, *(t.ndim for t in made)])
        self.largest = max([self.largest, *(t.numel() for t in made)])
        large = [t for t in tree_leaves(args) if isinstance(t, Tensor) and t.numel() >= 1_000_000]
        self.products += bool(large) and func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default)
        return result


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("topology", [*TOPOLOGIES, "brickwall"])
def test_arrays_are_few_and_low_dimensional_and_none_exceeds_the_padded_weight(topology: str, order: str) -> None:
    options = TOPOLOGIES.get(topology, {"topology": "brickwall"})
    gen = Generator((1000, 1000), GeneratorConfig(order=order, **options), device="meta")
    with Arrays() as seen:
        weight_adjoint(gen, torch.empty(1000, 1000, device="meta"))
    assert 2 < seen.dims <= 7
    assert 1_000_000 <= seen.largest <= 1 << 20
    # Back and environment of the last segment; nothing else meets the whole tensor, which is not made anew.
    assert seen.products == 2
