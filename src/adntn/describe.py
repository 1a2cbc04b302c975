"""What a model's generated layers are, and what they save: the report that ``compress_`` returns."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from adntn.baselines import Network
from adntn.decompose import WarmStartReport
from adntn.fit import FitReport
from adntn.generator import GeneratorModule
from adntn.nn import GeneratedWeight
from adntn.quantization import packed_bytes, quantized_names

__all__ = [
    "CompressionReport",
    "LayerReport",
    "describe",
    "generated_weights",
    "generator_bytes",
    "plain_name",
    "stored_bytes",
]

_COMPILED = "_orig_mod."


def plain_name(name: str) -> str:
    """Return a module's or parameter's name without the ``_orig_mod.`` that torch.compile puts in."""
    return name.replace(_COMPILED, "").removesuffix(_COMPILED[:-1]).rstrip(".")


def generated_weights(model: nn.Module) -> dict[str, GeneratedWeight]:
    """Return what is generated in a model; a module that stands in several places comes once.

    A layer has its own name, and a weight that is one of several in its module, or is a parameter of a module without a
    class of its own, that of the parameter in the plain model: ``"attn.in_proj_weight"``, ``"rnn.weight_ih_l0"``.
    """
    named = ((name, m) for name, m in model.named_modules() if isinstance(m, GeneratedWeight))
    return {plain_name(m.dense_name(name)): m for name, m in named}


@dataclass(frozen=True)
class LayerReport:
    """One generated layer.

    Attributes:
        name: in the model; where a module has several weights, that of the parameter.
        kind: of the torch layer, as ``"Linear"``; ``"parameter"`` for one of a module without a class of its own.
        shape: of the weight.
        topology: of the generator.
        dense: numbers that the dense weight stores, P; 0 for one that is tied to another's.
        padded: entries that the trees make, P padded to powers of the radix; 0 for a layer that shares another's
            generator.
        generated: numbers that are stored and trained instead; 0 for a layer that shares another's generator, and the
            root alone for one that shares its cores.
        dense_bytes: bytes of the dense weight.
        generated_bytes: bytes of the generator's parameters, packed if they are quantised, and of the seed of a random
            projection.
        rank_bound: the greatest rank that the weight can have.
        way: how the layer runs with many positions in training, ``"factored"`` or ``"dense"``.
        reason: why it runs so.
        least: from how many positions on.
        fit: how near its generator came to the dense weight, where it started from that.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    topology: str
    dense: int
    padded: int
    generated: int
    dense_bytes: int
    generated_bytes: int
    rank_bound: int
    way: str
    reason: str
    least: int = 1
    fit: FitReport | WarmStartReport | None = None

    @property
    def runs(self) -> str:
        """The way, and from how many positions on where it is not taken for fewer."""
        return self.way if self.least == 1 else f"{self.way} from {self.least:,}"

    @property
    def ratio(self) -> float:
        """Stored numbers before over after; infinite for a layer that shares another's generator."""
        return self.dense / self.generated if self.generated else float("inf")


@dataclass(frozen=True)
class CompressionReport:
    """What became of a model: a row a layer, their sum, and the whole model.

    Attributes:
        layers: one for each generated layer.
        model_before: parameters of the whole model when these layers are dense.
        model_after: parameters of the whole model as it is.
    """

    layers: tuple[LayerReport, ...]
    model_before: int
    model_after: int

    @property
    def dense(self) -> int:
        return sum(row.dense for row in self.layers)

    @property
    def generated(self) -> int:
        return sum(row.generated for row in self.layers)

    @property
    def ratio(self) -> float:
        """Stored numbers of the generated layers' weights, before over after."""
        return self.dense / self.generated if self.generated else float("nan")

    @property
    def model_ratio(self) -> float:
        """Parameters of the whole model, before over after."""
        return self.model_before / self.model_after if self.model_after else float("nan")

    def __str__(self) -> str:
        head: tuple[str, ...]
        head = ("layer", "weight", "topology", "P", "P padded", "stored", "ratio", "bytes", "rank <=", "runs")
        rows: list[tuple[str, ...]] = [
            (
                row.name,
                "x".join(map(str, row.shape)),
                row.topology,
                f"{row.dense:,}",
                f"{row.padded:,}",
                f"{row.generated:,}",
                f"{row.ratio:,.1f}x" if row.generated else "shared",
                f"{row.generated_bytes:,}",
                f"{row.rank_bound:,}",
                row.runs,
            )
            for row in self.layers
        ]
        stored_bytes = sum(row.generated_bytes for row in self.layers)
        padded = sum(row.padded for row in self.layers)
        sums = (f"{self.dense:,}", f"{padded:,}", f"{self.generated:,}", f"{self.ratio:,.1f}x", f"{stored_bytes:,}")
        whole = (f"{self.model_before:,}", "", f"{self.model_after:,}", f"{self.model_ratio:,.1f}x", "")
        rows.append(("these layers", "", "", *sums, "", ""))
        rows.append(("whole model", "", "", *whole, "", ""))
        if any(row.fit is not None for row in self.layers):
            head += ("error", "stable rank", "of dense")
            cells = [*map(_fit_cells, self.layers), ("", "", ""), ("", "", "")]
            rows = [(*row, *fitted) for row, fitted in zip(rows, cells, strict=True)]
        widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
        align = [str.ljust if i in (0, 1, 2, 9) else str.rjust for i in range(len(head))]
        lines = ["  ".join(a(c, w) for a, c, w in zip(align, r, widths, strict=True)).rstrip() for r in (head, *rows)]
        return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:-2], "-" * max(map(len, lines)), *lines[-2:]])


def _fit_cells(row: LayerReport) -> tuple[str, str, str]:
    if row.fit is None:
        return ("", "", "")
    return f"{row.fit.relative_error:.3f}", f"{row.fit.stable_rank:.1f}", f"{row.fit.target_stable_rank:.1f}"


def generator_bytes(generator: GeneratorModule, known: Container[int] = ()) -> int:
    """Return the bytes that :func:`adntn.save` stores of a generator: packed where it is quantised.

    Args:
        generator: of which.
        known: identities of parameters that are not counted: what is common to it and a generator before.
    """
    blueprint, dtype, quantization = generator.blueprint, generator.dtype, generator.quantization
    if generator.has_common_cores:
        return _count_new(generator, known) * dtype.itemsize
    total = blueprint.num_parameters * dtype.itemsize + 8 * len(blueprint.buffer_shapes)
    if quantization is None:
        return total
    whole = sum(math.prod(blueprint.parameter_shapes[name]) for name in quantized_names(blueprint))
    return total - whole * dtype.itemsize + packed_bytes(blueprint, quantization, dtype)


def _count_new(generator: GeneratorModule, known: Container[int]) -> int:
    return sum(p.numel() for _, p in generator.generator_parameters() if id(p) not in known)


def stored_bytes(model: nn.Module) -> int:
    """Return the bytes that :func:`adntn.save` stores of a model, each tensor once, without the file's header."""
    tensors = {id(t): t for t in model.state_dict(keep_vars=True).values() if _has_size(t)}
    generators = {weight._network: weight for weight in generated_weights(model).values()}
    for generator in generators.values():
        for name in (*generator.blueprint.parameter_shapes, *generator.blueprint.buffer_shapes):
            tensors.pop(id(generator.get_core(name)), None)
    own: int = sum(t.numel() * t.element_size() for t in tensors.values())
    known: set[int] = set()
    for generator in generators.values():
        own += generator_bytes(generator, known)
        known.update(id(parameter) for _, parameter in generator.generator_parameters())
    return own


def _has_size(value: object) -> bool:
    # A lazy layer's parameters have none yet, and a module can keep anything in its state.
    lazy = isinstance(value, (nn.parameter.UninitializedParameter, nn.parameter.UninitializedBuffer))
    return isinstance(value, Tensor) and not lazy


def describe(model: nn.Module, fits: Mapping[Network, FitReport | WarmStartReport] | None = None) -> CompressionReport:
    """Describe a model's generated layers, its own size, and what both would be with dense layers.

    Args:
        model: with generated layers.
        fits: what the fits or warm starts of some generators reached, for their layers' rows.
    """
    rows: list[LayerReport] = []
    roots: set[int] = set()
    weights: set[object] = set()
    known: set[int] = set()
    for name, layer in generated_weights(model).items():
        first, new = id(layer._network) not in roots, (id(layer._network), layer.rows) not in weights
        roots.add(id(layer._network))
        weights.add((id(layer._network), layer.rows))
        stored, dense = _count_new(layer, known) if first else 0, math.prod(layer.shape) if new else 0
        size = generator_bytes(layer, known) if first else 0
        known.update(id(parameter) for _, parameter in layer.generator_parameters())
        item = layer.dtype.itemsize
        rows.append(
            LayerReport(
                name=name,
                kind=layer.kind,
                shape=layer.shape,
                topology=layer.config.topology,
                dense=dense,
                padded=layer.blueprint.tensorization.padded_size if first else 0,
                generated=stored,
                dense_bytes=dense * item,
                generated_bytes=size,
                rank_bound=layer.rank_bound(),
                way=layer.way.name,
                reason=layer.way.reason,
                least=layer.choices.training[-1][0],
                fit=(fits or {}).get(layer._network),
            )
        )
    after = sum(p.numel() for p in model.parameters() if _has_size(p))
    saved = sum(row.dense - row.generated for row in rows)
    return CompressionReport(tuple(rows), after + saved, after)
