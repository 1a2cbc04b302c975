"""Reference models, and a user's own from a file."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adntn.errors import AdntnError, nearest

__all__ = [
    "DEFAULT_TARGETS",
    "MODELS",
    "Builder",
    "ModelError",
    "alexnet",
    "model_builder",
    "resnet20",
    "small_cnn",
    "vgg16",
]

ImageShape = tuple[int, int, int]  # channels, height, width

# Where a model is only looked at, there is no data to say these.
_USUAL_SHAPE: ImageShape = (1, 28, 28)
_USUAL_CLASSES = 10


class ModelError(AdntnError, ValueError):
    """A model is not known, its file is not there, or what it builds is no module."""


@dataclass(frozen=True)
class Builder:
    """Makes a model, a fresh one at each call.

    Attributes:
        make: the function, which may take ``width``, a share of the model's channels.
        takes_width: whether it does.
    """

    make: Callable[..., nn.Module]
    takes_width: bool

    def __call__(self) -> nn.Module:
        return self.make()

    def narrower(self, width: float) -> nn.Module:
        """Return the model with a share of its channels."""
        return self.make(width=width)


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]


class SmallCNN(nn.Module):
    """Three 3x3 convolutions with batch norm, global average pooling, and a linear head.

    The first convolution has few channels and sees 3x3 pixels only, and pooling forgets where they were: whatever the
    network knows of larger shapes is in ``conv2`` and ``conv3``, so that it costs accuracy to delete them.
    """

    def __init__(
        self, image_shape: ImageShape, num_classes: int, channels: tuple[int, int, int] = (8, 64, 128)
    ) -> None:
        super().__init__()
        first, second, third = channels
        self.conv1 = nn.Conv2d(image_shape[0], first, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(first)
        self.conv2 = nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(second)
        self.conv3 = nn.Conv2d(second, third, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(third)
        self.head = nn.Linear(third, num_classes)

    def forward(self, x: Tensor) -> Tensor:  # shape: (batch, C, H, W) -> (batch, classes)
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        x = torch.relu(self.norm3(self.conv3(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def small_cnn(image_shape: ImageShape, num_classes: int, width: float = 1.0) -> nn.Module:
    """Build the demo's network, with a share of its channels."""
    first, second, third = (max(1, round(width * channels)) for channels in (8, 64, 128))
    return SmallCNN(image_shape, num_classes, (first, second, third))


def vgg16(image_shape: ImageShape, num_classes: int, width: float = 1.0, head: tuple[int, ...] = ()) -> nn.Module:
    """Build VGG-16 for images of up to 32x32: thirteen 3x3 convolutions with batch norm, five poolings, a linear head.

    The modules are named as torchvision's are: ``features.0`` ... and ``classifier``, or ``classifier.0``, ``.3`` (the
    paper's FC2) and ``.6`` with ``head=(4096, 4096)``.

    Args:
        image_shape: channels, height, width; smaller images are padded with zeros to 32x32.
        num_classes: outputs.
        width: share of the channels, as 0.25.
        head: sizes of hidden linear layers, each with dropout.
    """
    channels = image_shape[0]
    model = _padded_to_32("vgg16", image_shape)
    plan = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
    layers: list[nn.Module] = []
    for step in plan:
        if step == 0:
            layers.append(nn.MaxPool2d(2))
        else:
            outputs = max(1, round(step * width))
            layers += _conv(channels, outputs)
            channels = outputs
    model.add_module("features", nn.Sequential(*layers))
    model.add_module("flatten", nn.Flatten())
    sizes = (channels, *head)
    hidden = [
        layer
        for inputs, outputs in pairwise(sizes)
        for layer in (nn.Linear(inputs, outputs), nn.ReLU(inplace=True), nn.Dropout())
    ]
    last = nn.Linear(sizes[-1], num_classes)
    model.add_module("classifier", nn.Sequential(*hidden, last) if head else last)
    return model


def _padded_to_32(name: str, image_shape: ImageShape) -> nn.Sequential:
    """Return a sequence that begins with what brings images to 32x32."""
    _, height, width = image_shape
    if max(height, width) > 32:
        raise ModelError(f"this {name} is for images of up to 32x32, not {height}x{width}.")
    model = nn.Sequential()
    if (height, width) != (32, 32):
        top, left = (32 - height) // 2, (32 - width) // 2
        model.add_module("pad", nn.ZeroPad2d((left, 32 - width - left, top, 32 - height - top)))
    return model


def alexnet(image_shape: ImageShape, num_classes: int, width: float = 1.0) -> nn.Module:
    """Build AlexNet for images of up to 32x32: torchvision's layers behind a first convolution of 3x3 and stride 2.

    The modules are named as torchvision's are: the 5x5 convolution from 64 to 192 channels is ``features.3``, the 3x3
    one from 256 to 256 ``features.10``; they are the paper's two (Table 3).

    Args:
        image_shape: channels, height, width; smaller images are padded with zeros to 32x32.
        num_classes: outputs.
        width: share of the channels and of the hidden features, as 0.25.
    """
    model = _padded_to_32("alexnet", image_shape)
    a, b, c, d, hidden = (max(1, round(width * size)) for size in (64, 192, 384, 256, 4096))
    features = nn.Sequential(
        *(nn.Conv2d(image_shape[0], a, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU(inplace=True)),
        *(nn.Conv2d(d, d, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
    )
    model.add_module("features", features)
    model.add_module("flatten", nn.Flatten())
    classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(d * 2 * 2, hidden), nn.ReLU(inplace=True)),
        *(nn.Dropout(), nn.Linear(hidden, hidden), nn.ReLU(inplace=True)),
        nn.Linear(hidden, num_classes),
    )
    model.add_module("classifier", classifier)
    return model


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, and what came in added to what comes out.

    Where size or channels change, what came in is cut to every second pixel and padded with channels of zeros: a
    shortcut without a parameter.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:  # shape: (batch, inputs, H, W) -> (batch, outputs, H / stride, W / stride)
        y = torch.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.more:
            x = F.pad(x, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
        return torch.relu(y + x)


def resnet20(image_shape: ImageShape, num_classes: int, width: float = 1.0) -> nn.Module:
    """Build ResNet-20 for small images (He et al., arXiv:1512.03385, Section 4.2): three stages of three blocks.

    Args:
        image_shape: channels, height, width.
        num_classes: outputs.
        width: share of the channels, which are 16, 32 and 64.
    """
    sizes = [max(1, round(width * channels)) for channels in (16, 32, 64)]
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(image_shape[0], sizes[0], 3, padding=1, bias=False))
    model.add_module("norm1", nn.BatchNorm2d(sizes[0]))
    model.add_module("relu", nn.ReLU(inplace=True))
    channels = sizes[0]
    for stage, outputs in enumerate(sizes, 1):
        for block in range(3):
            stride = 2 if stage > 1 and block == 0 else 1
            model.add_module(f"layer{stage}_{block}", ResidualBlock(channels, outputs, stride))
            channels = outputs
    model.add_module("pool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", nn.Linear(channels, num_classes))
    return model


def vgg16_quarter(image_shape: ImageShape, num_classes: int, width: float = 1.0) -> nn.Module:
    """Build VGG-16 with a quarter of its channels, or with a share of them."""
    return vgg16(image_shape, num_classes, width=0.25 * width)


#: Reference models by the name that ``--model`` takes.
MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {"small-cnn": small_cnn, "vgg16": vgg16, "vgg16-quarter": vgg16_quarter, "alexnet": alexnet, "resnet20": resnet20}
)

#: The layers that are generated unless told otherwise: all convolutions but the first.
DEFAULT_TARGETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "small-cnn": ("conv2", "conv3"),
        "vgg16": (r"re:features\.(?!0$)\d+",),
        "vgg16-quarter": (r"re:features\.(?!0$)\d+",),
        "alexnet": (r"re:features\.(?!0$)\d+",),
        "resnet20": (r"re:layer.*",),
    }
)


def model_builder(spec: str, image_shape: ImageShape | None, num_classes: int | None) -> Builder:
    """Return a function that builds a fresh model.

    Args:
        spec: a reference model's name, or ``path/to/file.py:function``. The function may take ``image_shape``,
            ``in_channels`` and ``num_classes`` by name; they are passed if it does. ``width`` with a default, a share
            of the channels, lets it be compared with a narrower one of itself. The file is run, so it must be
            one that you trust.
        image_shape: channels, height, width of the data, if known; else 1, 28, 28 where the model must have them.
        num_classes: classes of the data, if known; else 10 likewise.

    Raises:
        ModelError: no such model, file or function, or it returns no ``nn.Module``.
    """
    if ":" not in spec and not spec.endswith(".py"):
        if spec not in MODELS:
            raise ModelError(
                f"there is no model {spec!r}; choose one of {', '.join(MODELS)}, or give path/to/file.py:function."
                f"{nearest(spec, MODELS)}"
            )
        function: Callable[..., nn.Module] = MODELS[spec]
        shape, classes = image_shape or _USUAL_SHAPE, num_classes or _USUAL_CLASSES
        return Builder(functools.partial(function, shape, classes), takes_width=True)
    function = _from_file(spec)
    facts = {
        "image_shape": image_shape,
        "in_channels": image_shape[0] if image_shape else None,
        "num_classes": num_classes,
    }
    usual = {"image_shape": _USUAL_SHAPE, "in_channels": _USUAL_SHAPE[0], "num_classes": _USUAL_CLASSES}
    passed: dict[str, Any] = {}
    missing = []
    for name, parameter in inspect.signature(function).parameters.items():
        if facts.get(name) is not None:
            passed[name] = facts[name]
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            if name in usual:
                passed[name] = usual[name]
            else:
                missing.append(name)
    if missing:
        raise ModelError(
            f"{spec}: the function needs {', '.join(missing)}; it can be given {', '.join(facts)}, "
            "all else needs a default."
        )

    def build(**more: float) -> nn.Module:
        try:
            model = function(**passed, **more)
        except AdntnError:
            raise
        except Exception as error:
            raise ModelError(f"{spec} cannot build its model: {type(error).__name__}: {error}") from error
        if not isinstance(model, nn.Module):
            raise ModelError(f"{spec} returned a {type(model).__name__}, not an nn.Module.")
        return model

    return Builder(build, takes_width="width" in inspect.signature(function).parameters)


def _from_file(spec: str) -> Callable[..., nn.Module]:
    file, _, name = spec.rpartition(":") if ":" in spec else (spec, "", "")
    path = Path(file)
    if not path.is_file():
        raise ModelError(f"there is no file {file!r} (from --model {spec!r}).")
    loader = importlib.util.spec_from_file_location(f"adntn_user_{path.stem}", path)
    if loader is None or loader.loader is None:
        raise ModelError(f"{file!r} is not a Python file.")
    module = importlib.util.module_from_spec(loader)
    sys.modules[module.__name__] = module  # dataclasses, for one, look their module up there
    try:
        loader.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module.__name__]
        raise ModelError(f"{file!r} cannot be run: {type(error).__name__}: {error}") from error
    functions = [n for n, f in vars(module).items() if inspect.isfunction(f) and f.__module__ == module.__name__]
    if not name:
        name = "build" if "build" in functions else ""
    if not callable(getattr(module, name, None)):
        raise ModelError(
            f"{file!r} has no function {name or 'build'!r}; it has {', '.join(functions) or 'none'}."
            f"{nearest(name, functions)}"
        )
    function: Callable[..., nn.Module] = getattr(module, name)
    return function
