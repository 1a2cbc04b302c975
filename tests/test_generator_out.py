"""Making a weight: in given memory, in how many operations, and with how much memory beside it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conformance_cases import TOPOLOGIES
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import adntn
from adntn import Generator, GeneratorConfig
from adntn.errors import ConfigError, ShapeError


class Operations(TorchDispatchMode):
    """Counts operations, and the bytes of the largest array that one made beside what was given."""

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.count = self.largest = 0
        self.given = {tensor.untyped_storage()._cdata for tensor in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.count += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self.given:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return result


# --- in given memory ------------------------------------------------------------------------------


@torch.no_grad()
def test_it_follows_the_parameters_at_every_call() -> None:
    gen = Generator((48, 40))
    memory = torch.empty(48, 40)
    first = gen.generate(out=memory).clone()
    gen.root.mul_(2.0)
    assert gen.generate(out=memory) is memory
    assert torch.equal(memory, gen())
    assert not torch.equal(memory, first)


@torch.no_grad()
@pytest.mark.parametrize("order", ["blocked", "paired"])
def test_a_weight_of_many_blocks_is_the_same_wherever_it_is_made(order: str) -> None:
    for shape, groups in (((1024, 1024), 1), ((1000, 640), 1), ((1500, 512), 2), ((128, 384, 3, 3), 1)):
        gen = Generator(shape, GeneratorConfig(order=order, groups=groups))
        for dtype in (torch.bfloat16, torch.float64):
            gen.to(dtype)
            values = gen._parameters_by_name()
            expected = gen._network.weight(values, gen._network.hidden(values, gen._activate))
            torch.testing.assert_close(gen(), expected.to(dtype))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_in_channels_last(dtype: torch.dtype) -> None:
    gen = Generator((32, 24, 3, 3), GeneratorConfig(topology="mera"), dtype=dtype)
    memory = torch.empty(32, 24, 3, 3, dtype=dtype).to(memory_format=torch.channels_last)
    gen.generate(out=memory)
    assert torch.equal(memory, gen())
    assert memory.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("topology", ["ttn", "tt", "lowrank", "frozen"])
def test_it_takes_no_gradients(topology: str) -> None:
    gen, memory = Generator((8, 8), GeneratorConfig(topology=topology)), torch.empty(8, 8)
    with pytest.raises(ConfigError, match=r"out= takes no derivatives.*torch\.no_grad"):
        gen.generate(out=memory)
    gen.requires_grad_(False)
    assert torch.equal(gen.generate(out=memory), gen())
    with pytest.raises(ConfigError, match="out= takes no derivatives"):
        gen.generate(out=memory.requires_grad_())


@torch.no_grad()
def test_it_takes_no_part_in_transforms() -> None:
    gen, memory = Generator((8, 8)), torch.empty(8, 8)

    def into(root: Tensor) -> Tensor:
        with torch.no_grad():
            made: Tensor = torch.func.functional_call(_Into(gen, memory), {"gen.root": root}, ())
            return made

    for transformed in (torch.func.vmap(into), lambda roots: torch.func.jvp(into, (roots[0],), (roots[1],))):
        with pytest.raises(ConfigError, match="out= takes no derivatives"):
            transformed(torch.randn(2, *gen.root.shape))
    assert torch.equal(into(gen.root), gen())  # other tensors in the parameters' place are no obstacle
    many = torch.func.vmap(lambda root: torch.func.functional_call(gen, {"root": root}, ()))
    assert torch.equal(many(gen.root.unsqueeze(0))[0], gen())


class _Into(nn.Module):
    def __init__(self, gen: Generator, memory: Tensor) -> None:
        super().__init__()
        self.gen, self.memory = gen, memory

    def forward(self) -> Tensor:
        return self.gen.generate(out=self.memory)


@pytest.mark.parametrize(
    "memory, error, named",
    [
        (torch.empty(8, 6), ShapeError, r"shape \(8, 6\).*\(6, 8\)"),
        (torch.empty(48), ShapeError, r"shape \(48,\)"),
        (torch.empty(6, 8, dtype=torch.float64), ConfigError, "torch.float64 on cpu.*torch.float32 on cpu"),
        (torch.empty(6, 8, device="meta"), ConfigError, "torch.float32 on meta"),
        (torch.empty(8).expand(6, 8), ConfigError, r"strides \(0, 1\)"),
    ],
    ids=["transposed", "flat", "float64", "meta", "stride 0"],
)
@torch.no_grad()
def test_memory_that_does_not_fit_is_refused(memory: Tensor, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        Generator((6, 8)).generate(out=memory)


@pytest.mark.usefixtures("no_graphs")
def test_it_compiles() -> None:
    gen = Generator((16, 16), GeneratorConfig(topology="mera"))
    memory = torch.empty(16, 16)
    with torch.no_grad():
        compiled = torch.compile(lambda: gen.generate(out=memory), fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(), gen())
        torch.testing.assert_close(memory, gen())


@torch.no_grad()
def test_layers_make_theirs_too() -> None:
    linear = adntn.nn.Linear(24, 16)
    assert torch.equal(linear.generate(out=torch.empty(16, 24)), linear.weight)
    padded = adntn.nn.Embedding(12, 8, padding_idx=3)
    memory = padded.generate(out=torch.empty(12, 8))
    assert torch.equal(memory, padded.weight)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    adntn.compress_(model, shared=[("0", "1")])
    assert torch.equal(model[1].generate(out=torch.empty(16, 16)), model[1].weight)
    with pytest.raises(ShapeError, match=r"\(32, 16\)"):
        model[1].generate(out=torch.empty(32, 16))


def test_the_adjoints_generators_make_theirs_too() -> None:
    gen = Generator((16, 16), GeneratorConfig(topology="mera"), backward="adjoint")
    with torch.no_grad():
        assert torch.equal(gen.generate(out=torch.empty(16, 16)), gen())


# --- memory beside the weight -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape, options, share",
    [
        ((4096, 4096), {}, 1 / 8),
        ((4096, 4096), {"topology": "mera"}, 1 / 4),
        ((4096, 4096), {"order": "paired"}, 1 / 8),
        ((4096, 4096), {"terms": 2}, 1 / 4),
        ((1000, 4096), {}, 1 / 8),
        ((512, 512, 3, 3), {}, 1 / 4),
        ((4000, 1000), {"groups": 4}, 1 / 7),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_little_memory_is_needed_beside_the_weight(
    shape: tuple[int, ...], options: dict[str, Any], share: float, dtype: torch.dtype
) -> None:
    gen = Generator(shape, GeneratorConfig(**options), dtype=dtype, device="meta")
    memory = torch.empty(shape, dtype=dtype, device="meta")
    with Operations(memory, *gen.parameters()) as seen:
        gen.generate(out=memory)
    # What is made on the way is float32 whatever the weight is.
    assert 0 < seen.largest <= 1.05 * share * 4 * math.prod(shape)


# --- how many operations ----------------------------------------------------------------------------

#: Of the state before the readout: forward, and forward and backward.
HIDDEN = {
    ("ttn", 256): (23, 68),
    ("ttn", 1024): (23, 68),
    ("ttn", 4096): (56, 160),
    ("mera", 256): (36, 106),
    ("mera", 1024): (51, 135),
    ("mera", 4096): (115, 300),
}
#: Of the whole weight.
WEIGHT = {
    ("ttn", 256): (57, 162),
    ("ttn", 4096): (106, 280),
    ("mera", 256): (158, 380),
    ("mera", 4096): (292, 700),
}


@pytest.mark.parametrize("what, bounds", [("hidden", HIDDEN), ("generate", WEIGHT)], ids=["hidden", "weight"])
def test_few_operations_make_it_and_take_it_back(what: str, bounds: dict[tuple[str, int], tuple[int, int]]) -> None:
    for (topology, size), (forward, both) in bounds.items():
        gen = Generator((size, size), GeneratorConfig(**TOPOLOGIES[topology]), device="meta")
        with torch.no_grad(), Operations() as seen:
            getattr(gen, what)()
        assert 0 < seen.count <= forward, (topology, size)
        with Operations() as seen:
            getattr(gen, what)().sum().backward()
        assert seen.count <= both, (topology, size)
