"""The grid: its own when it is met again, as near as it can be; and packed, to the last bit."""

from __future__ import annotations

import pytest
import torch
from conformance_cases import EVERYTHING, PLAIN
from torch import Tensor

from adntn import ConfigError, GeneratorConfig, Quantization
from adntn.quantization import fake_quantize, pack, packed_bytes, quantized_names, unpack
from adntn.topology import Blueprint

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
both = pytest.mark.parametrize("bits", [8, 4])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def some_numbers(dtype: torch.dtype, trees: int = 100) -> Tensor:
    """Return numbers of many sizes, of which a tree is as small as the type has them and one is zero."""
    least, most = {torch.float16: (-1, 3)}.get(dtype, (-9, 9))
    sizes = torch.logspace(least, most, trees, dtype=torch.float64).view(-1, 1, 1)
    numbers = torch.randn(trees, 3, 5, dtype=torch.float64) * sizes
    numbers[0], numbers[1] = torch.finfo(dtype).tiny, 0.0
    return numbers.to(dtype).flatten(0, 1)


@both
@every_dtype
def test_numbers_on_the_grid_have_it_as_theirs(bits: int, dtype: torch.dtype) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        once = fake_quantize(some_numbers(dtype), 100, Quantization(bits))
        assert once.dtype == dtype
        assert torch.equal(fake_quantize(once, 100, Quantization(bits)), once)


@both
@every_dtype
def test_a_grid_has_its_whole_numbers_and_each_number_goes_to_the_nearest(bits: int, dtype: torch.dtype) -> None:
    x = some_numbers(dtype)[9:]
    near = fake_quantize(x, 97, Quantization(bits)).double().view(97, -1)
    x = x.double().view(97, -1)
    scale = x.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    # With few digits a scale is up to the next power of two.
    coarse = {torch.bfloat16: 2.0, torch.float16: 2.0}.get(dtype, 1.0001)
    assert bool(((near - x).abs() <= 0.5 * coarse * scale * (1 + 1e-9)).all())
    distinct = max(len(row.abs().unique()) for row in near)
    assert distinct <= 2 ** (bits - 1)


def test_the_scale_is_the_largest_number_over_the_largest_of_the_grid() -> None:
    x = torch.tensor([[1.0, 0.45, -0.25, 0.005]])
    assert torch.allclose(fake_quantize(x, 1, Quantization(8)) * 127, torch.tensor([[127.0, 57, -32, 1]]), rtol=1e-4)
    assert torch.allclose(fake_quantize(x, 1, Quantization(4)) * 7, torch.tensor([[7.0, 3, -2, 0]]), rtol=1e-4)


def test_trees_have_scales_of_their_own() -> None:
    small, large = torch.randn(2, 3), 1000 * torch.randn(2, 3)
    together = fake_quantize(torch.cat([small, large]), 2, Quantization(8))
    assert torch.equal(together[:2], fake_quantize(small, 1, Quantization(8)))
    assert torch.equal(together[2:], fake_quantize(large, 1, Quantization(8)))


@pytest.mark.parametrize("bits", [0, 2, 16, 8.0, "8", True])
def test_other_numbers_of_bits_are_refused(bits: object) -> None:
    with pytest.raises(ConfigError, match="quantised to 8 or 4 bits"):
        Quantization(bits)  # type: ignore[arg-type]


# --- packed -----------------------------------------------------------------------------------------------------------


def drawn(options: dict[str, object], dtype: torch.dtype = torch.float32) -> tuple[Blueprint, dict[str, Tensor]]:
    blueprint = Blueprint((9, 5), GeneratorConfig(**{**PLAIN, "groups": 3, "bond_dim": 3, **options}))
    return blueprint, {name: torch.randn(shape).to(dtype) for name, shape in blueprint.parameter_shapes.items()}


@both
@pytest.mark.parametrize("topology", EVERYTHING)
def test_what_is_packed_comes_back_on_its_grid(topology: str, bits: int) -> None:
    for dtype in DTYPES:
        blueprint, values = drawn(EVERYTHING[topology], dtype)
        packed = pack(values, blueprint, Quantization(bits))
        assert packed.nbytes == packed_bytes(blueprint, Quantization(bits), dtype)
        back = unpack(packed, blueprint, Quantization(bits), dtype)
        assert tuple(back) == quantized_names(blueprint)
        for name, value in back.items():
            assert value.dtype == dtype
            assert torch.equal(value, fake_quantize(values[name], 3, Quantization(bits)))


def test_the_bytes_are_those_of_the_layout() -> None:
    blueprint, _ = drawn({"groups": 1, "bond_dim": 1, "topology": "lowrank"})
    left, right = torch.tensor([7.0, -7, 3, -1, 0, 1, 2, -2, 5]), 2 * torch.tensor([7.0, 1, 1, 1, 1])
    values = {"left": left.view(1, 9, 1), "right": right.view(1, 5, 1)}
    packed = pack(values, blueprint, Quantization(4))
    assert packed[:-8].tolist() == [0x97, 0xF3, 0x10, 0xE2, 0x05, 0x17, 0x11, 0x01]
    assert packed[-8:].view(torch.float32).tolist() == [1.0, 2.0]
    packed = pack({"left": left.view(1, 9, 1) * 127 / 7, "right": right.view(1, 5, 1)}, blueprint, Quantization(8))
    assert packed[:9].view(torch.int8).tolist() == [127, -127, 54, -18, 0, 18, 36, -36, 91]
    assert len(packed) == 14 + 8


@both
def test_bytes_that_are_none_are_refused(bits: int) -> None:
    blueprint, values = drawn({})
    grid = Quantization(bits)
    packed = pack(values, blueprint, grid)
    beyond, scale, negative = packed.clone(), packed.clone(), packed.clone()
    beyond[0] = 0x80 if bits == 8 else 0x88
    scale[-4:] = torch.tensor([float("inf")]).view(torch.uint8)
    negative[-4:] = torch.tensor([-1.0]).view(torch.uint8)
    for wrong, message in (
        (packed[1:], "instead of torch.uint8 of shape"),
        (packed.view(torch.int8), "instead of torch.uint8 of shape"),
        (packed.view(1, -1), "instead of torch.uint8 of shape"),
        (beyond, "outside of the grid"),
        (scale, "no positive number"),
        (negative, "no positive number"),
    ):
        with pytest.raises(ValueError, match=message):
            unpack(wrong, blueprint, grid, torch.float32)
