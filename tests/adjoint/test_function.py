"""``backward="adjoint"``: what a backward pass keeps, gives, and stands."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from conformance_cases import Case
from torch import Tensor, nn

import adntn
from adntn import Generator, GeneratorConfig
from adntn.errors import ConfigError
from adntn.topology import BASELINES

#: One of each kind.
CASES = {
    "ttn": Case((5, 11), {"latent_order": 3}),
    "mera, gates, prelu, norm, paired": Case(
        (6, 8),
        {
            "topology": "mera",
            "latent_order": 2,
            "gate": True,
            "activation": "prelu",
            "norm": "layer",
            "order": "paired",
        },
    ),
    "attn, terms, groups, kernel": Case(
        (6, 4, 3, 3), {"topology": "attn", "latent_order": 2, "terms": 2, "groups": 2, "kernel_radix": 3}
    ),
    "brick wall": Case((8, 8), {"topology": "brickwall", "columns": 4, "activation": "sine(omega=3)"}),
    "no hidden level": Case((4, 4), {"latent_order": 9}),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def both(case: Case) -> tuple[Generator, Generator]:
    """The same generator with autograd's backward pass and with ours."""
    plain = case.build()
    ours = copy.deepcopy(plain)
    ours.backward = "adjoint"
    return plain, ours


def as_function(gen: Generator) -> tuple[Any, tuple[Tensor, ...]]:
    names = [name for name, _ in gen.named_parameters()]

    def function(*values: Tensor) -> Tensor:
        made: Tensor = torch.func.functional_call(gen, dict(zip(names, values, strict=True)), ())
        return made

    return function, tuple(p.detach().clone().requires_grad_() for p in gen.parameters())


def made_by(gen: Generator) -> dict[str, Tensor]:
    factors = gen.factors() or ()
    return {"weight": gen(), "hidden": gen.hidden()} | dict(zip("acb", factors, strict=False))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@every_case
def test_values_and_gradients_are_those_of_autograd(case: Case) -> None:
    plain, ours = both(case)
    expected = made_by(plain)
    for name, value in made_by(ours).items():
        assert_close(value, expected[name])
        if not expected[name].requires_grad:  # a factor without cores of its own
            assert name in "abc"
            continue
        probe = torch.randn_like(value)
        found = torch.autograd.grad(value, list(ours.parameters()), probe, allow_unused=True)
        wanted = torch.autograd.grad(expected[name], list(plain.parameters()), probe, allow_unused=True)
        for mine, theirs in zip(found, wanted, strict=True):
            assert (mine is None) == (theirs is None)
            if mine is not None:
                assert_close(mine, theirs)


def kept(work: Any) -> tuple[int, Tensor]:
    """Bytes of storage that a backward pass would keep, and what was made."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = work()
    return sum(storages.values()), made


@pytest.mark.parametrize(
    "options",
    [{"topology": "ttn"}, {"topology": "attn"}, {"topology": "mera"}, {"topology": "brickwall", "columns": 4}],
    ids=str,
)
def test_nothing_but_the_parameters_is_kept(options: dict[str, Any]) -> None:
    gen = Generator((256, 256), GeneratorConfig(activation="prelu", **options))
    stored = sum(p.numel() * p.element_size() for p in gen.parameters())
    autograds, _ = kept(gen)
    gen.backward = "adjoint"
    ours, weight = kept(gen)
    assert ours == stored
    assert autograds > 10 * ours
    assert kept(gen.hidden)[0] < stored
    index = torch.randint(256, (7,))
    assert kept(gen.factors)[0] == stored
    assert kept(lambda: gen.factors_at(index))[0] == stored + index.numel() * index.element_size()
    weight.sum().backward()
    assert all(p.grad is not None for p in gen.parameters())


@every_case
def test_first_and_second_derivatives_are_those_of_finite_differences(case: Case) -> None:
    function, values = as_function(both(case)[1])
    assert torch.autograd.gradcheck(function, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, values, fast_mode=True)


def factors_as_function(gen: Generator, *, of_rows: bool) -> tuple[Any, tuple[Tensor, ...]]:
    """A, C and B side by side, of A all rows or some of them twice."""
    _, values = as_function(gen)
    names = [name for name, _ in gen.named_parameters()]
    index = torch.tensor([[1, 0], [3, 1]])
    module = AsFactors(gen, index if of_rows else None)

    def function(*values: Tensor) -> Tensor:
        named = {f"gen.{name}": value for name, value in zip(names, values, strict=True)}
        made: Tensor = torch.func.functional_call(module, named, ())
        return made

    return function, values


class AsFactors(nn.Module):
    def __init__(self, gen: Generator, index: Tensor | None) -> None:
        super().__init__()
        self.gen, self.index = gen, index

    def forward(self) -> Tensor:
        factors = self.gen.factors() if self.index is None else self.gen.factors_at(self.index)
        assert factors is not None
        return torch.cat([factor.flatten() for factor in factors])


@pytest.mark.parametrize("of_rows", [False, True])
@pytest.mark.parametrize("name", [name for name in CASES if "paired" not in name])
def test_derivatives_of_the_factors_stand_what_those_of_the_weight_do(name: str, of_rows: bool) -> None:
    plain, ours = both(CASES[name])
    (f, values), (g, _) = (factors_as_function(gen, of_rows=of_rows) for gen in (plain, ours))
    assert torch.autograd.gradcheck(g, values, fast_mode=True)
    assert torch.autograd.gradgradcheck(g, values, fast_mode=True)
    values = tuple(v.detach() for v in values)
    tangents = tuple(torch.randn_like(v) for v in values)
    for mine, theirs in zip(torch.func.jvp(g, values, tangents), torch.func.jvp(f, values, tangents), strict=True):
        assert_close(mine, theirs)

    def slope(function: Any) -> Any:
        return torch.func.grad(lambda *v: function(*v).square().sum(), argnums=tuple(range(len(values))))

    stacks = tuple(torch.stack([v, 1.5 * v]) for v in values)
    together, one = torch.func.vmap(slope(g))(*stacks), slope(f)(*(s[1] for s in stacks))
    for mine, theirs in zip(together, one, strict=True):
        assert_close(mine[1], theirs)
    over = [torch.func.jvp(slope(h), values, tangents)[1] for h in (f, g)]  # forward over reverse
    for mine, theirs in zip(over[1], over[0], strict=True):
        assert_close(mine, theirs)


@pytest.mark.parametrize("index", [torch.tensor([[3, 3], [39, 0]]), torch.tensor(7), torch.zeros(2, 0).long()], ids=str)
def test_an_embedding_takes_its_rows_back_by_the_adjoint(index: Tensor) -> None:
    layer = adntn.nn.Embedding(40, 16, config=GeneratorConfig(topology="mera", terms=2), dtype=torch.float64)
    gradients = []
    for layer.backward in ("autograd", "adjoint"):
        layer.zero_grad()
        layer(index).square().sum().backward()
        gradients.append([p.grad for p in layer.parameters()])
    for mine, theirs in zip(gradients[1], gradients[0], strict=True):
        assert_close(mine, theirs)


@every_case
def test_forward_mode_and_its_mixtures_with_reverse_are_autograds(case: Case) -> None:
    plain, ours = both(case)
    (f, values), (g, _) = as_function(plain), as_function(ours)
    values = tuple(v.detach() for v in values)
    tangents = tuple(torch.randn_like(v) for v in values)
    for mine, theirs in zip(torch.func.jvp(g, values, tangents), torch.func.jvp(f, values, tangents), strict=True):
        assert_close(mine, theirs)
    assert_close(torch.func.jacfwd(g)(*values), torch.func.jacrev(f)(*values))
    assert_close(torch.func.jacrev(g)(*values), torch.func.jacrev(f)(*values))

    def slope(function: Any) -> Any:
        return torch.func.grad(lambda *v: function(*v).square().sum())

    over = [torch.func.jvp(slope(h), values, tangents)[1] for h in (f, g)]  # forward over reverse
    assert_close(over[1], over[0])
    twice = [torch.func.grad(lambda *v, h=h: (slope(h)(*v) * tangents[0]).sum())(*values) for h in (f, g)]
    assert_close(twice[1], twice[0])


def test_forward_mode_without_torch_func() -> None:
    _, ours = both(CASES["ttn"])
    function, values = as_function(ours)
    tangents = tuple(torch.randn_like(v) for v in values)
    _, expected = torch.func.jvp(function, tuple(v.detach() for v in values), tangents)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(v, t) for v, t in zip(values, tangents, strict=True)]
        moved = torch.autograd.forward_ad.unpack_dual(function(*duals)).tangent
    assert moved is not None
    assert_close(moved, expected)


@every_case
def test_vmap_over_parameters_gives_the_gradients_one_by_one(case: Case) -> None:
    function, values = as_function(both(case)[1])
    slope = torch.func.grad(lambda *v: function(*v).square().sum(), argnums=tuple(range(len(values))))
    stacks = tuple(torch.stack([v.detach(), 1.5 * v.detach()]) for v in values)
    for n, member in enumerate(torch.func.vmap(slope)(*stacks)[0]):
        assert_close(member, slope(*(s[n] for s in stacks))[0])
    weights = torch.func.vmap(function)(*stacks)
    assert_close(weights[1], function(*(s[1] for s in stacks)))


def test_gradients_for_each_sample() -> None:
    layer = adntn.nn.Linear(32, 16, config=GeneratorConfig(topology="mera"), dtype=torch.float64)
    layer.backward = "adjoint"
    x = torch.randn(3, 32, dtype=torch.float64)
    values = {name: p.detach() for name, p in layer.named_parameters()}

    def loss(v: dict[str, Tensor], sample: Tensor) -> Tensor:
        made: Tensor = torch.func.functional_call(layer, v, (sample,)).square().sum()
        return made

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(values, x)
    for n in range(3):
        alone = torch.func.grad(loss)(values, x[n])
        for name, gradient in alone.items():
            assert_close(each[name][n], gradient)


def test_functional_call_is_taken_back_with_its_own_parameters() -> None:
    """The backward pass runs when the module has its own parameters again, the activations' among them."""
    plain, ours = both(CASES["mera, gates, prelu, norm, paired"])
    gradients = []
    for gen in (plain, ours):
        torch.manual_seed(3)
        others = {n: torch.randn_like(p).requires_grad_() for n, p in gen.named_parameters()}
        weight = torch.func.functional_call(gen, others, ())
        with torch.no_grad():
            for parameter in gen.parameters():
                parameter.zero_()
        gradients.append(torch.autograd.grad(weight.square().sum(), list(others.values())))
    for mine, theirs in zip(gradients[1], gradients[0], strict=True):
        assert_close(mine, theirs)


@pytest.mark.slow
@pytest.mark.usefixtures("no_graphs")
def test_a_compiled_generator_has_the_same_gradients() -> None:
    _, ours = both(CASES["mera, gates, prelu, norm, paired"])
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(ours().square().sum(), list(ours.parameters()))
    found = torch.autograd.grad(compiled().square().sum(), list(ours.parameters()))
    for mine, theirs in zip(found, expected, strict=True):
        assert_close(mine, theirs)


def test_autocast_leaves_the_way_back_in_full_precision() -> None:
    gen = Generator((32, 32), GeneratorConfig(topology="mera"), backward="adjoint")
    probe = torch.randn(32, 32)
    expected = torch.autograd.grad(gen(), list(gen.parameters()), probe)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.autograd.grad(gen(), list(gen.parameters()), probe)
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_parameters_in_bfloat16_get_gradients_rounded_once() -> None:
    gen = Generator((32, 32), GeneratorConfig(topology="mera", activation="prelu"), dtype=torch.bfloat16)
    gradients = []
    for gen.backward in ("autograd", "adjoint"):
        gen.zero_grad()
        gen().float().square().sum().backward()
        gen.hidden().float().sum().backward()
        gradients.append([p.grad for p in gen.parameters()])
    for mine, theirs in zip(gradients[1], gradients[0], strict=True):
        assert mine.dtype == torch.bfloat16
        torch.testing.assert_close(mine, theirs, rtol=2**-6, atol=2**-6 * float(theirs.abs().max()))


def test_frozen_parameters_and_a_second_backward_pass() -> None:
    plain, ours = both(CASES["ttn"])
    for gen in (plain, ours):
        gen.root.requires_grad_(False)
        loss = gen().square().sum()
        loss.backward(retain_graph=True)
        loss.backward()
        assert gen.root.grad is None
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        if mine.grad is not None and theirs.grad is not None:
            assert_close(mine.grad, theirs.grad)


def test_a_parameter_changed_between_the_passes_is_noticed() -> None:
    gen = Generator((8, 8), backward="adjoint")
    loss = gen().sum()
    with torch.no_grad():
        gen.root.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- the setting ------------------------------------------------------------------------------------


def test_it_is_a_setting_of_the_module_and_no_part_of_config_or_state() -> None:
    gen = Generator((8, 8), backward="adjoint")
    other = Generator((8, 8))
    assert (gen.backward, other.backward) == ("adjoint", "autograd")
    assert gen.config == other.config
    assert gen.state_dict().keys() == other.state_dict().keys()
    assert copy.deepcopy(gen).backward == "adjoint"
    file = io.BytesIO()
    torch.save(gen, file)
    file.seek(0)
    assert torch.load(file, weights_only=False).backward == "adjoint"
    gen.backward = "autograd"
    assert type(gen().grad_fn).__name__ != "_RecomputedBackward"


def test_an_unknown_one_is_an_error_that_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'adjoint'"):
        Generator((8, 8), backward="adjont")  # type: ignore[arg-type]


@pytest.mark.parametrize("topology", BASELINES)
def test_a_baseline_has_none(topology: str) -> None:
    with pytest.raises(ConfigError, match=f"backward='adjoint'.*{topology}"):
        Generator((8, 8), GeneratorConfig(topology=topology), backward="adjoint")


@pytest.mark.parametrize("execution", ["dense", "factored"])
def test_layers_have_it_too(execution: str) -> None:
    config = GeneratorConfig(topology="mera", activation="prelu")
    model = nn.Sequential(
        adntn.nn.Conv2d(32, 32, 3, config=config, execution=execution, dtype=torch.float64),
        nn.Flatten(),
        adntn.nn.Linear(128, 64, config=config, execution=execution, dtype=torch.float64),
    )
    x = torch.randn(2, 32, 4, 4, dtype=torch.float64)
    gradients = []
    for way in ("autograd", "adjoint"):
        model[0].backward = model[2].backward = way
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for mine, theirs in zip(gradients[1], gradients[0], strict=True):
        assert_close(mine, theirs)
    bytes_kept, _ = kept(lambda: model[2].weight)
    assert bytes_kept == sum(p.numel() * p.element_size() for n, p in model[2].named_parameters() if n != "bias")
    with adntn.cached(model):
        assert_close(model(x), model(x))
    assert not any(hasattr(module, "_backward") for module in adntn.materialize(model))


def test_layers_that_share_a_generator_start_with_the_same_setting() -> None:
    first = adntn.nn.Linear(32, 32)
    first.backward = "adjoint"
    second = adntn.nn.Linear.from_dense(nn.Linear(32, 32), share=first)
    assert second.backward == "adjoint"
