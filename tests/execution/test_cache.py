"""What is kept between calls: made once while nothing changes, and never a value that is not true any more."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from adntn import Generator, GeneratorConfig
from adntn.execution import cache
from adntn.execution.cache import keep, keeping
from adntn.nn import Linear

CONFIG = GeneratorConfig(topology="mera", activation="prelu", order="blocked")


class Counted:
    """A layer, and how often its generator made something."""

    def __init__(self, execution: str = "factored", **options: object) -> None:
        self.layer = Linear(64, 64, config=CONFIG, execution=execution, **options)  # type: ignore[arg-type]
        self.x = torch.randn(2, 64, dtype=self.layer.root.dtype)
        self.made = 0
        for activation in list(self.layer.activation.values())[:1]:
            activation.register_forward_hook(self._count)

    def _count(self, *_: object) -> None:
        self.made += 1

    def __call__(self) -> Tensor:
        result: Tensor = self.layer(self.x)
        return result

    def keeping(self):  # type: ignore[no-untyped-def]
        return keeping([self.layer])


@pytest.fixture(params=["dense", "factored"])
def counted(request: pytest.FixtureRequest) -> Counted:
    return Counted(request.param)


# --- made once ------------------------------------------------------------------------------------


def test_a_value_is_made_once_inside_the_block_and_at_every_call_outside(counted: Counted) -> None:
    with torch.no_grad():
        expected = counted()
        counted()
        assert counted.made == 2
        with counted.keeping():
            for _ in range(3):
                assert torch.equal(counted(), expected)
            assert counted.made == 3
        counted()
        assert counted.made == 4


def test_it_is_the_same_in_inference_mode(counted: Counted) -> None:
    with torch.inference_mode(), counted.keeping():
        counted()
        counted()
    assert counted.made == 1


def test_what_inference_mode_kept_can_be_used_outside_it(counted: Counted) -> None:
    with counted.keeping():
        with torch.inference_mode():
            expected = counted()
        with torch.no_grad():
            assert torch.equal(counted(), expected)
        counted().sum().backward()
    assert counted.layer.root.grad is not None


def test_each_value_has_its_name() -> None:
    gen = Generator((64, 64))
    with torch.no_grad(), keeping([gen]):
        assert keep(gen, "a", lambda: 1) == 1
        assert keep(gen, "b", lambda: 2) == 2
        assert keep(gen, "a", lambda: 3) == 1


def test_only_the_generators_asked_for_are_kept() -> None:
    first, second = Counted(), Counted()
    with torch.no_grad(), first.keeping():
        for _ in range(2):
            first()
            second()
    assert (first.made, second.made) == (1, 2)


def test_generators_do_not_share_what_is_kept() -> None:
    first, second = Counted(), Counted()
    with torch.no_grad(), keeping([first.layer, second.layer]):
        assert not torch.equal(first(), second())
        assert torch.equal(second(), second.layer(second.x))


def test_one_generator_of_two_layers_is_kept_once() -> None:
    counted = Counted()
    twin = Linear.from_dense(nn.Linear(64, 64), share=counted.layer, execution="factored")
    with torch.no_grad(), keeping([counted.layer, twin]):
        counted()
        twin(counted.x)
    assert counted.made == 1


# --- never stale ----------------------------------------------------------------------------------


def optimizer_step(layer: Linear) -> None:
    with torch.enable_grad():
        layer.generate().square().sum().backward()
    torch.optim.SGD(layer.parameters(), lr=0.1).step()


def fused_optimizer_step(layer: Linear) -> None:
    with torch.enable_grad():
        layer.generate().square().sum().backward()
    torch.optim.AdamW(layer.parameters(), lr=0.1, foreach=True).step()


def write_in_place(layer: Linear) -> None:
    layer.root.add_(1.0)


def write_one_number_through_data(layer: Linear) -> None:
    layer.root.data[0, 3] += 1.0


def write_a_core_through_data(layer: Linear) -> None:
    dict(layer.named_parameters())["mix.1.0"].data.mul_(2.0)


def write_a_slope(layer: Linear) -> None:
    dict(layer.named_parameters())["activation.1.slope"].fill_(3.0)


def write_through_a_detached_alias(layer: Linear) -> None:
    layer.root.detach().mul_(2.0)


def write_through_numpy(layer: Linear) -> None:
    layer.root.detach().numpy()[:] *= 2.0


def replace_data(layer: Linear) -> None:
    layer.root.data = layer.root.data * 2.0


def replace_the_parameter(layer: Linear) -> None:
    layer.root = nn.Parameter(layer.root * 2.0)


def load_a_state_dict(layer: Linear) -> None:
    layer.load_state_dict({name: value * 1.1 for name, value in layer.state_dict().items()})


def assign_a_state_dict(layer: Linear) -> None:
    layer.load_state_dict({name: value * 1.1 for name, value in layer.state_dict().items()}, assign=True)


def reset(layer: Linear) -> None:
    layer.reset_parameters()


CHANGES = [
    optimizer_step,
    fused_optimizer_step,
    write_in_place,
    write_one_number_through_data,
    write_a_core_through_data,
    write_a_slope,
    write_through_a_detached_alias,
    write_through_numpy,
    replace_data,
    replace_the_parameter,
    load_a_state_dict,
    assign_a_state_dict,
    reset,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
def test_a_change_of_parameters_is_seen(counted: Counted, change: Callable[[Linear], None]) -> None:
    with torch.no_grad(), counted.keeping():
        before = counted()
        change(counted.layer)
        after = counted()
        assert torch.equal(counted(), after)
        assert counted.made >= 2
    assert not torch.allclose(after, before)
    with torch.no_grad():
        assert torch.equal(after, counted())


def test_a_change_back_is_seen_too(counted: Counted) -> None:
    with torch.no_grad(), counted.keeping():
        before = counted()
        counted.layer.root.data.mul_(2.0)
        counted()
        counted.layer.root.data.div_(2.0)
        assert torch.equal(counted(), before)


def test_a_change_in_inference_mode_is_seen() -> None:
    with torch.inference_mode():
        counted = Counted()  # its parameters keep no version
        with counted.keeping():
            before = counted()
            counted.layer.root.mul_(2.0)
            assert not torch.allclose(counted(), before)


def test_a_move_to_another_dtype_and_back_is_seen(counted: Counted) -> None:
    with torch.no_grad(), counted.keeping():
        counted()
        for dtype in (torch.float64, torch.float16, torch.float32, torch.float64, torch.bfloat16):
            counted.layer.to(dtype)
            counted.x = counted.x.to(dtype)
            assert counted().dtype == dtype
            assert counted.layer.weight.dtype == dtype


def test_a_value_of_the_block_before_is_forgotten(counted: Counted) -> None:
    with torch.no_grad():
        with counted.keeping():
            counted()
        with counted.keeping():
            counted()
    assert counted.made == 2


def test_writing_into_a_returned_weight_changes_no_layer() -> None:
    counted = Counted("dense")
    with torch.no_grad(), counted.keeping():
        before = counted()
        counted.layer.weight.zero_()
        assert torch.equal(counted(), before)


# --- where nothing is kept ------------------------------------------------------------------------


def test_nothing_is_kept_where_a_gradient_may_be_wanted(counted: Counted) -> None:
    with counted.keeping():
        counted()
        counted().sum().backward()
        assert counted.made == 2
        with torch.no_grad():
            counted()
        counted().sum().backward()
    assert all(p.grad is not None for p in counted.layer.parameters())
    assert counted.made == 4


def test_training_inside_the_block_is_training(counted: Counted) -> None:
    twin = copy.deepcopy(counted.layer)

    def train(layer: nn.Module) -> None:
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        for _ in range(3):
            with torch.no_grad():
                layer(counted.x)
            optimizer.zero_grad()
            layer(counted.x).square().mean().backward()
            optimizer.step()

    with counted.keeping():
        train(counted.layer)
    train(twin)
    for ours, theirs in zip(counted.layer.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_layer_on_the_meta_device_passes_through() -> None:
    layer = Linear(64, 64, device="meta")
    with torch.no_grad(), keeping([layer]):
        for _ in range(2):
            assert layer(torch.empty(2, 64, device="meta")).shape == (2, 64)


def test_vmap_over_parameters_passes_through(counted: Counted) -> None:
    stacks = {name: torch.stack([p, 2 * p]).detach() for name, p in counted.layer.named_parameters()}

    def run(parameters: dict[str, Tensor]) -> Tensor:
        result: Tensor = torch.func.functional_call(counted.layer, parameters, (counted.x,))
        return result

    with torch.no_grad(), counted.keeping():
        counted()
        both = torch.func.vmap(run)(stacks)
        doubled = {name: value[1] for name, value in stacks.items()}
        torch.testing.assert_close(both[0], counted(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both[1], run(doubled), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", ["autocast", "plain"])
def test_autocast_and_plain_calls_do_not_mix(counted: Counted, first: str) -> None:
    def autocast() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return counted()

    with torch.no_grad():
        expected = {"autocast": autocast(), "plain": counted()}
        with counted.keeping():
            for name in (first, "plain", "autocast", "plain"):
                result = autocast() if name == "autocast" else counted()
                assert result.dtype == expected[name].dtype
                assert torch.equal(result, expected[name])


# --- the block ------------------------------------------------------------------------------------


def test_blocks_may_be_nested(counted: Counted) -> None:
    with torch.no_grad(), counted.keeping():
        counted()
        with counted.keeping():
            counted()
        counted()
    assert counted.made == 1


def test_a_generator_named_twice_is_kept_until_the_end(counted: Counted) -> None:
    with torch.no_grad():
        with keeping([counted.layer] * 2):
            counted()
            counted()
        assert counted.made == 1
        counted()
    assert counted.made == 2


def test_an_error_ends_the_block(counted: Counted) -> None:
    def fail() -> None:
        with counted.keeping():
            counted()
            raise KeyError("mine")

    with torch.no_grad():
        with pytest.raises(KeyError, match="mine"):
            fail()
        made = counted.made
        counted()
    assert counted.made == made + 1
    assert len(cache._KEPT) == 0


def test_nothing_outlives_the_block(counted: Counted) -> None:
    with torch.no_grad(), counted.keeping():
        counted()
        assert len(cache._KEPT) == 1
    assert len(cache._KEPT) == 0


# --- copies and files -----------------------------------------------------------------------------


def size_of(value: object) -> int:
    file = io.BytesIO()
    torch.save(value, file)
    return len(file.getbuffer())


@pytest.mark.parametrize("store", [pickle.dumps, copy.deepcopy, size_of], ids=["pickle", "deepcopy", "torch.save"])
def test_no_copy_or_file_holds_what_is_kept(store: Callable[[object], object]) -> None:
    layer = Linear(512, 512, config=CONFIG, execution="dense")
    before = len(pickle.dumps(layer)), size_of(layer.state_dict()), set(vars(layer))
    with torch.no_grad(), keeping([layer]):
        layer(torch.randn(1, 512))
        store(layer)
        assert (len(pickle.dumps(layer)), size_of(layer.state_dict()), set(vars(layer))) == before
    assert before[0] < 512 * 512  # a quarter of the weight's bytes


def test_a_copy_made_inside_the_block_is_independent(counted: Counted) -> None:
    with torch.no_grad(), counted.keeping():
        before = counted()
        other = copy.deepcopy(counted.layer)
        other.root.mul_(2.0)
        assert not torch.allclose(other(counted.x), before)
        assert torch.equal(counted(), before)
