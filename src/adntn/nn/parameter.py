"""Parameters of modules that have no generated class of their own: LSTM, GRU, anything user-made."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from adntn.errors import ConfigError, check_choice
from adntn.execution.choices import EXECUTIONS, Way
from adntn.generator import Generator
from adntn.nn._generated import GeneratedWeight, Source

__all__ = ["GeneratedParameter", "attach", "detach", "generated_parameters"]


class GeneratedParameter(GeneratedWeight):
    """A parametrization (``torch.nn.utils.parametrize``) that makes a parameter of any module.

    The module goes on reading its parameter, which is made anew at each access; nothing of the dense one is kept.
    Such a module cannot be pickled whole, as torch's parametrized ones in general; its ``state_dict`` can.
    :func:`adntn.compress_` puts it there, where a target is the name of a parameter.

    Args:
        source: a generator or another such layer, whose root and cores it registers as its own, and which of the rows
            that these make are the parameter's; None for all.
        execution: ``"auto"`` or ``"dense"``, which are the same here.

    Raises:
        ConfigError: ``execution="factored"``: the module takes a whole parameter.

    Example:
        >>> rnn = torch.nn.LSTM(64, 64)
        >>> report = adntn.compress_(rnn, targets=["weight_ih_l0", "weight_hh_l0"])
        >>> type(rnn.parametrizations.weight_ih_l0[0]).__name__
        'GeneratedParameter'
    """

    kind = "parameter"

    def __init__(self, source: Source, execution: str = "auto") -> None:
        super().__init__()
        self._take(source)
        self._order: tuple[str, ...] = ()
        self._attached = False
        self.execution = execution

    def would_run(self, execution: str) -> Way:
        """Return how it would run: always dense.

        Raises:
            ConfigError: the execution is unknown, or ``"factored"``.
        """
        if check_choice("execution", execution, EXECUTIONS) == "factored":
            raise ConfigError("execution='factored' is not possible: the module of a parameter takes it whole.")
        return Way.only("dense", "its module takes a whole parameter")

    @property
    def chooses(self) -> bool:
        return False

    def _on_meta(self) -> _Rehearsed:
        generator = Generator(self.blueprint.shape, self.config, device="meta", dtype=self.dtype)
        generator._backward = self._backward
        return _Rehearsed((generator, self.rows))

    def dense_name(self, name: str) -> str:
        module, _, own = name.rpartition("parametrizations.")
        return module + own.rpartition(".")[0]

    def forward(self) -> Tensor:
        return self.weight

    def right_inverse(self, value: Tensor) -> tuple[Tensor, ...]:
        """Keep nothing of the dense parameter, which torch asks for when the parametrization is registered."""
        if self._attached:
            raise AttributeError(
                f"a generated parameter of shape {self.shape} is read-only; change its root and cores, or make the "
                "module plain with adntn.materialize()."
            )
        self._attached = True
        return ()


class _Rehearsed(GeneratedParameter):
    """One that meets an input, which it leaves alone; see :mod:`adntn.execution.rehearsal`."""

    def probe(self, positions: int) -> Tensor:
        return torch.empty(0, device="meta")

    def forward(self, *_: Tensor) -> Tensor:
        return self.weight


class _Recurrent(nn.RNNBase):
    """Mixed into torch's recurrent layers, which keep a list of weights besides their parameters.

    That list would hold on to the dense weights, and later to generated ones with the graph that made them.
    """

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        running: list[Tensor | None] | None = self.__dict__.get("_running")
        return [getattr(self, name, None) for name in self._flat_weights_names] if running is None else running

    @_flat_weights.setter
    def _flat_weights(self, value: object) -> None:
        pass

    def _init_flat_weights(self) -> None:
        self._flat_weight_refs = []

    def _weights_have_changed(self) -> bool:
        return False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.__dict__["_running"] = self._flat_weights  # once a call, though torch's forward reads them twice
        try:
            return super().forward(*args, **kwargs)
        finally:
            self.__dict__.pop("_running", None)


@cache
def _recurrent(cls: type[nn.Module]) -> type[nn.Module]:
    return type(cls.__name__, (_Recurrent, cls), {"__module__": cls.__module__, "__doc__": cls.__doc__})


def generated_parameters(module: nn.Module) -> dict[str, GeneratedParameter]:
    """Return a module's own parameters that are generated, by name."""
    lists = module._modules.get("parametrizations")
    if not isinstance(lists, nn.ModuleDict) or not parametrize.is_parametrized(module):
        return {}
    first = {name: next(iter(each.children())) for name, each in lists.items()}
    return {name: each for name, each in first.items() if isinstance(each, GeneratedParameter)}


def attach(module: nn.Module, name: str, generated: GeneratedParameter) -> None:
    """Let root and cores make a module's parameter from now on; if that fails, the module is as it was."""
    before, cls, parametrized = dict(module._parameters), type(module), parametrize.is_parametrized(module)
    orders = [each._order for each in generated_parameters(module).values()]
    generated._order = orders[0] if orders else tuple(before)
    try:
        if parametrized:
            _own_class(module)
        elif isinstance(module, nn.RNNBase):
            module.__dict__.pop("_flat_weights", None)
            module.__class__ = _recurrent(cls)  # type: ignore[assignment, arg-type]
            module._init_flat_weights()
        # unsafe: without the check that torch makes by generating the parameter once.
        parametrize.register_parametrization(module, name, generated, unsafe=True)
        _in_order(module.parametrizations._modules, generated._order)  # type: ignore[union-attr]
    except BaseException:
        module.__class__ = cls
        module._parameters.update(before)
        if not parametrized:
            module._modules.pop("parametrizations", None)
            if isinstance(module, nn.RNNBase):
                module._init_flat_weights()
        raise


def detach(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Put a plain parameter in the place of a generated one."""
    order = generated_parameters(module)[name]._order
    _own_class(module)
    with torch.no_grad():
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    for kept in (module._parameters, module._buffers):
        kept.pop(name, None)
    module.register_parameter(name, parameter)
    _in_order(module._parameters, order)
    if isinstance(module, _Recurrent) and not parametrize.is_parametrized(module):
        module.__class__ = type(module).__bases__[1]
        module._init_flat_weights()


def _in_order(named: dict[str, Any], order: tuple[str, ...]) -> None:
    """Bring what is named into an order; what has no place in it comes last."""
    place = {name: i for i, name in enumerate(order)}
    items = sorted(named.items(), key=lambda item: place.get(item[0], len(place)))
    named.clear()
    named.update(items)


def _own_class(module: nn.Module) -> None:
    """Give a parametrized module its own class: copies share one, and torch's functions change it."""
    cls = type(module)
    names = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(cls.__name__, cls.__bases__, names)
