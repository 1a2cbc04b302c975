"""The Triton programs against the whole weight by torch in float64, under Triton's interpreter on the CPU.

``make test-triton`` makes an environment for them and sets ADNTN_REQUIRE_TRITON, with which nothing is skipped.
"""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conformance_cases import Case, relative_error
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import adntn
from adntn import Generator, GeneratorConfig
from adntn.execution import kernels, tiles
from adntn.generator import GeneratorModule
from adntn.nn import Linear

MISSING = {
    "Triton is not installed here": importlib.util.find_spec("triton") is None,
    "TRITON_INTERPRET=1 is not set": os.environ.get("TRITON_INTERPRET") != "1",
}
if any(MISSING.values()):
    why = f"{next(what for what, true in MISSING.items() if true)}; `make test-triton` has an environment for these"
    if os.environ.get("ADNTN_REQUIRE_TRITON"):
        pytest.fail(why, pytrace=False)
    pytest.skip(why, allow_module_level=True)

Options = dict[str, Any]

#: Every two of topology and order meet; and what is easily got wrong.
CASES: dict[str, Case] = {
    f"{topology}, {order}": Case((16, 32), {"topology": topology, "order": order, "latent_order": 3})
    for topology in ("ttn", "attn", "mera", "brickwall")
    for order in ("blocked", "paired", "flat", "block_paired")
}
CASES |= {
    "two boundary layers": Case((16, 16), {"topology": "attn", "boundary_layers": 2, "order": "paired"}),
    "odd modes": Case((16, 8), {"topology": "mera", "order": "paired", "latent_order": 3}),
    "padded": Case((100, 40), {"order": "paired"}),
    "much padded": Case((1000, 40), {"order": "paired"}),
    "padded, several blocks of each axis": Case((300, 140), {"topology": "attn", "order": "block_paired"}),
    "padded, blocked": Case((70, 90), {"order": "blocked"}),
    "low digits in several blocks": Case((70, 300), {"order": "blocked"}),
    "2 groups": Case((24, 40), {"groups": 2, "order": "paired", "topology": "mera"}),
    "3 groups, blocked": Case((9, 50), {"groups": 3, "order": "blocked"}),
    "2 terms": Case((20, 12), {"terms": 2, "order": "paired", "topology": "attn"}),
    "3 terms in 2 groups": Case((40, 24), {"terms": 3, "groups": 2, "order": "paired", "gate": True}),
    "radix 3": Case((30, 50), {"radix": 3, "order": "paired"}),
    "radix 3, bond 2": Case((30, 50), {"radix": 3, "bond_dim": 2, "order": "paired", "topology": "mera"}),
    "bond 4": Case((40, 24), {"bond_dim": 4, "order": "paired", "latent_order": 2}),
    "radix 17, one core larger than a tile": Case((40, 30), {"radix": 17, "order": "paired", "latent_order": 1}),
    "digits out of order": Case((10, 20), {"order": (6, 0, 3, 2, 5, 1, 4, 8, 7), "topology": "mera"}),
    "digits out of order, groups": Case((10, 3), {"order": (4, 0, 2, 3, 1), "groups": 2}),
    "no hidden level": Case((8, 8), {"order": "paired", "latent_order": 9}),
    "a column": Case((1, 37), {"order": "paired"}),
    "one number": Case((1, 1), {"order": "paired"}),
    "a ravel": Case((25, 40), {"order": "flat", "topology": "attn"}),
}
KERNELS: dict[str, Case] = {
    "3x3": Case((6, 10, 3, 3), {"order": "paired"}),
    "3x3, blocked": Case((10, 6, 3, 3), {"order": "blocked", "topology": "mera"}),
    "3x3, radix of its own, groups": Case((8, 6, 3, 3), {"order": "paired", "kernel_radix": 3, "groups": 2}),
    "3x3, kernel first": Case((4, 3, 3, 3), {"order": (7, 4, 5, 6, 0, 1, 2, 3), "topology": "attn"}),
    "3x3, a ravel": Case((5, 7, 3, 3), {"order": "flat", "terms": 2}),
    "conv1d": Case((5, 4, 5), {"order": "block_paired"}),
}
PRODUCTS = {name: case for name, case in CASES.items() if name != "a ravel"}


@pytest.fixture
def only_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make of every way around the kernels an error."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise AssertionError("torch operations ran in place of a kernel")

    monkeypatch.setattr(GeneratorModule, "generate", refuse)
    monkeypatch.setattr(F, "linear", refuse)


def pair(case: Case) -> tuple[Generator, Generator]:
    """Return a generator in float64 and the same in float32."""
    exact = case.build()
    return exact, copy.deepcopy(exact).float()


def gradients(made: Tensor, wanted: list[Tensor], probe: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(made, wanted, probe.to(made.dtype)))


def assert_close(ours: list[Tensor], exact: list[Tensor], tolerance: float = 2e-5) -> None:
    for a, b in zip(ours, exact, strict=True):
        assert a.shape == b.shape
        assert a.isfinite().all()
        assert (a.double() - b).norm() <= tolerance * b.norm() + 1e-12, relative_error(a, b)


def dense(exact: Generator, x: Tensor, bias: Tensor | None, probe: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return output and gradients by torch, in float64: of the input, the bias and all parameters."""
    x = x.detach().double().requires_grad_()
    bias = None if bias is None else bias.detach().double().requires_grad_()
    y = F.linear(x, exact(), bias)
    wanted = [x, *([] if bias is None else [bias]), *exact.parameters()]
    return y, gradients(y, wanted, probe)


def check_product(
    exact: Generator, gen: Generator, x: Tensor, bias: Tensor | None = None, tolerance: float = 2e-5
) -> None:
    """Compare output and gradients; ``only_kernels`` must not be on before this has its reference."""
    probe = torch.randn(*x.shape[:-1], gen.shape[0], dtype=torch.float64)
    y, expected = dense(exact, x, bias, probe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratorModule, "generate", None)  # no way around the kernels
        assert kernels.usable(gen, "cpu") is None
        ours = kernels.linear(x, gen, bias)
        assert ours.dtype == x.dtype
        assert_close([ours], [y], tolerance)
        wanted = [x, *([] if bias is None else [bias]), *gen.parameters()]
        assert_close(gradients(ours, wanted, probe), expected, tolerance)


@pytest.mark.parametrize("name", CASES | KERNELS)
def test_the_whole_weight(name: str, request: pytest.FixtureRequest) -> None:
    exact, gen = pair((CASES | KERNELS)[name])
    weight, probe = exact(), torch.randn(exact.shape, dtype=torch.float64)
    expected = gradients(weight, list(exact.parameters()), probe)
    request.getfixturevalue("only_kernels")
    assert kernels.usable(gen, "cpu", "weight") is None
    ours = kernels.weight(gen)
    assert_close([ours], [weight])
    assert_close(gradients(ours, list(gen.parameters()), probe), expected)


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_product_and_its_gradients(name: str) -> None:
    exact, gen = pair(PRODUCTS[name])
    out, inner = gen.shape
    check_product(exact, gen, torch.randn(5, inner, requires_grad=True), torch.randn(out, requires_grad=True))


@pytest.mark.parametrize("room", [1, 1000])
def test_sums_that_few_or_many_programs_share(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from adntn.execution.kernels import ops

    monkeypatch.setattr(ops, "_room", lambda device: room)
    for case in (Case((72, 200), {"order": "paired", "groups": 2}), Case((20, 300), {"order": "blocked"})):
        exact, gen = pair(case)
        out, inner = gen.shape
        check_product(exact, gen, torch.randn(5, inner, requires_grad=True), torch.randn(out, requires_grad=True))
        probe = torch.randn(gen.shape, dtype=torch.float64)
        expected = gradients(exact(), list(exact.parameters()), probe)
        assert_close(gradients(kernels.weight(gen), list(gen.parameters()), probe), expected)


@pytest.mark.parametrize("batch", [(), (1,), (0,), (2, 0, 3), (2, 3), (150,)], ids=str)
def test_any_leading_dimensions_without_a_bias(batch: tuple[int, ...]) -> None:
    exact, gen = pair(Case((20, 12), {"order": "paired"}))
    check_product(exact, gen, torch.randn(*batch, 12, requires_grad=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_with_sums_in_float32(dtype: torch.dtype) -> None:
    exact = CASES["2 groups"].build()
    gen = copy.deepcopy(exact).to(dtype)
    exact.load_state_dict(gen.state_dict())  # the rounded cores
    x = torch.randn(7, 40, dtype=dtype, requires_grad=True)
    rounding = 2 * torch.finfo(dtype).eps
    check_product(exact, gen, x, torch.randn(24, dtype=dtype, requires_grad=True), rounding)
    weight = kernels.weight(gen)
    assert weight.dtype == dtype
    assert_close([weight], [exact()], rounding)
    probe = torch.randn(gen.shape, dtype=torch.float64).to(dtype)
    expected = gradients(exact(), list(exact.parameters()), probe)
    assert_close(gradients(weight, list(gen.parameters()), probe), expected, rounding)


def test_autocast_casts_the_input_and_leaves_the_generator_in_float32() -> None:
    exact, gen = pair(CASES["ttn, paired"])
    x = torch.randn(5, 32, requires_grad=True)
    probe = torch.randn(5, 16, dtype=torch.float64)
    y, expected = dense(exact, x, None, probe)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = kernels.linear(x, gen)
        assert tiles.make(gen)[0].dtype == torch.float32
    assert ours.dtype == torch.bfloat16
    assert_close([ours], [y], 1e-2)
    found = gradients(ours, [x, *gen.parameters()], probe)
    assert {g.dtype for g in found} == {torch.float32}
    assert_close(found, expected, 2e-2)


def test_inputs_and_gradients_that_are_not_contiguous() -> None:
    exact, gen = pair(CASES["padded"])
    probe = torch.randn(5, 100, dtype=torch.float64)
    for x in (torch.randn(40, 5).T, torch.randn(5, 80)[:, ::2], torch.randn(1, 40).expand(5, -1)):
        _, expected = dense(exact, x, None, probe)
        leaf = x.detach().requires_grad_()  # keeps its strides
        transposed = probe.T.contiguous().T.float()
        assert_close(gradients(kernels.linear(leaf, gen), [leaf, *gen.parameters()], transposed), expected)
    leaf = torch.randn(5, 40, requires_grad=True)
    _, expected = dense(exact, leaf, None, torch.ones(5, 100))
    kernels.linear(leaf, gen).sum().backward()  # its gradient is one number, expanded
    assert leaf.grad is not None
    assert_close([leaf.grad], expected[:1])


def test_a_second_call_sees_new_parameters_and_tiles_can_be_kept() -> None:
    exact, gen = pair(CASES["mera, paired"])
    x = torch.randn(5, 32)
    first = kernels.linear(x, gen)
    with torch.no_grad():
        exact.root.mul_(1.5), gen.root.mul_(1.5)
    assert relative_error(first.double(), F.linear(x.double(), exact())) > 0.1
    made = tiles.make(gen)
    for ours in (kernels.linear(x, gen), kernels.linear(x, gen, made=made), F.linear(x, kernels.weight(gen, made))):
        assert_close([ours], [F.linear(x.double(), exact())])


def test_only_what_needs_a_gradient_gets_one() -> None:
    _, gen = pair(CASES["ttn, paired"])
    gen.requires_grad_(False)
    x = torch.randn(5, 32, requires_grad=True)
    (found,) = torch.autograd.grad(kernels.linear(x, gen).sum(), [x])
    assert_close([found], [gen().sum(0).double().expand(5, -1)])
    assert not kernels.linear(x.detach(), gen).requires_grad
    with torch.inference_mode():
        torch.testing.assert_close(kernels.linear(x, gen), x @ kernels.weight(gen).T)


def test_a_layer_after_saving_and_loading(tmp_path: Path) -> None:
    options: Options = {"config": GeneratorConfig(order="paired"), "execution": "dense"}
    model, other = (torch.nn.Sequential(Linear(24, 20, **options)) for _ in range(2))
    adntn.save(model, tmp_path / "m.safetensors")
    adntn.load(other, tmp_path / "m.safetensors")
    x, layer = torch.randn(3, 24), other[0]
    torch.testing.assert_close(kernels.linear(x, layer, layer.bias), model(x))


def test_compiled_into_one_graph(no_graphs: None) -> None:
    _, gen = pair(CASES["2 groups"])
    x, bias = torch.randn(5, 40, requires_grad=True), torch.randn(24, requires_grad=True)
    wanted = [x, bias, *gen.parameters()]
    plain = kernels.linear(x, gen, bias)
    compiled = torch.compile(lambda *inputs: kernels.linear(*inputs), backend="aot_eager", fullgraph=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GeneratorModule, "generate", None)
        ours = compiled(x, gen, bias)
        weight = torch.compile(lambda g: kernels.weight(g), backend="aot_eager", fullgraph=True)(gen)
    probe = torch.randn(5, 24)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(weight, gen())
    torch.testing.assert_close(gradients(ours, wanted, probe), gradients(plain, wanted, probe))


def test_operators_keep_torchs_rules() -> None:
    from adntn.execution.kernels import ops

    _, gen = pair(CASES["padded"])
    state, matrix = (t.detach().requires_grad_() for t in tiles.make(gen))
    x, bias = torch.randn(5, 40, requires_grad=True), torch.randn(100, requires_grad=True)
    layout = tiles.layout(gen).numbers()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_static")
    opcheck(ops.weight, (state, matrix, layout, torch.float32), test_utils=tests)
    opcheck(ops.product, (x, state, matrix, bias, layout, False), test_utils=tests)
    upstream = torch.randn(5, 100, requires_grad=True)
    opcheck(ops.product, (upstream, state, matrix, None, layout, True), test_utils=tests)


def test_transforms_of_torch_func_take_torch_operations() -> None:
    _, gen = pair(CASES["ttn, paired"])
    x, t = torch.randn(4, 5, 32), torch.randn(4, 5, 32)
    expected = F.linear(x, gen())
    torch.testing.assert_close(torch.func.vmap(lambda x: kernels.linear(x, gen))(x), expected)
    value, tangent = torch.func.jvp(lambda x: kernels.linear(x, gen), (x,), (t,))
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(tangent, F.linear(t, gen()))
    torch.func.functional_call(gen, dict(gen.named_parameters()))


def test_a_second_derivative_is_an_error_not_a_wrong_number() -> None:
    _, gen = pair(CASES["ttn, paired"])
    first = torch.autograd.grad(kernels.weight(gen).square().sum(), [gen.root], create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        first[0].sum().backward()


class Largest(TorchDispatchMode):
    """Records the bytes of the largest array that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes = max([self.bytes, *(t.nbytes for t in tree_leaves(result) if isinstance(t, Tensor))])
        return result


@pytest.mark.parametrize("order", ["paired", "blocked"])
def test_neither_weight_nor_its_gradient_is_ever_made(order: str) -> None:
    from adntn.execution.kernels import ops

    gen = Generator((256, 256), GeneratorConfig(topology="ttn", order=order))
    x = torch.randn(16, 256, requires_grad=True)
    with Largest() as outside:
        kernels.linear(x, gen).sum().backward()
    state, matrix = tiles.make(gen)
    layout = tiles.layout(gen).numbers()
    with Largest() as inside, torch.no_grad():  # operators hide from such a mode what they allocate
        ops.product._init_fn(x, state, matrix, None, layout, False)
        ops.product._init_fn(x, state, matrix, None, layout, True)
        ops.product_gradients._init_fn(x, x, state, matrix, layout)
    weight = 256 * 256 * 4
    assert 0 < outside.bytes <= weight // 8
    assert 0 < inside.bytes <= weight // 4  # parts of sums


def test_the_programs_compile_for_gpus() -> None:
    """Without a GPU: Triton compiles for one all the same. The interpreter knows nothing of layouts in registers."""
    script = Path(__file__).parents[1] / "compile_programs.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    compiled = {tuple(line.split()[:2]) for line in done.stdout.splitlines()}
    names = ("make_weight", "fold_weight", "multiply", "fold_product")
    assert compiled == {(name, f"sm_{capability}") for name in names for capability in (80, 90)}


def test_a_layer_runs_through_the_kernel_once_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = kernels.linear
    monkeypatch.setattr(kernels, "linear", lambda x, *rest: calls.append(len(x)) or run(x, *rest))
    layer = Linear(40, 100, config=GeneratorConfig(topology="mera", order="paired"))
    x = torch.randn(5, 40)
    expected = layer(x)
    assert not calls
    kernels.use()
    try:
        found = layer(x)
        found.sum().backward()
        with adntn.cached(layer):
            kept = layer(x)
    finally:
        kernels.use(False)
    assert calls == [5, 5]
    assert layer.root.grad is not None
    for y in (found, kept):
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
