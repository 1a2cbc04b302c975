"""Reference models against counts by hand, and models from a user's file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from adntn.errors import AdntnError
from adntn.experiments.models import DEFAULT_TARGETS, MODELS, ModelError, alexnet, model_builder, small_cnn, vgg16
from adntn.targets import select

VGG_CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# --- reference models -----------------------------------------------------------------------------------------------


def test_the_small_network_has_the_parameters_counted_by_hand() -> None:
    by_hand = 8 * 9 + 64 * 8 * 9 + 128 * 64 * 9 + 2 * (8 + 64 + 128) + 128 * 10 + 10
    assert count(small_cnn((1, 8, 8), 10)) == by_hand == 80_098


@pytest.mark.parametrize(
    "channels, classes, expected", [(3, 10, 14_724_042), (1, 10, 14_722_890), (3, 100, 14_770_212)]
)
def test_vgg16_has_the_parameters_counted_by_hand(channels: int, classes: int, expected: int) -> None:
    # Thirteen convolutions without bias, a scale and a shift for each of their channels, and the head.
    inputs = (channels, *VGG_CHANNELS[:-1])
    convolutions = sum(9 * i * o for i, o in zip(inputs, VGG_CHANNELS, strict=True))
    by_hand = convolutions + 2 * sum(VGG_CHANNELS) + 512 * classes + classes
    with torch.device("meta"):
        model = vgg16((channels, 32, 32), classes)
    assert count(model) == by_hand == expected
    assert sum(isinstance(m, nn.Conv2d) for m in model.modules()) == 13
    assert sum(isinstance(m, nn.MaxPool2d) for m in model.modules()) == 5


def test_vgg16_with_the_papers_head_has_its_second_linear_layer_where_torchvision_has_it() -> None:
    with torch.device("meta"):
        plain, model = vgg16((3, 32, 32), 10), vgg16((3, 32, 32), 10, head=(4096, 4096))
    sizes = [(m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear)]
    assert sizes == [(512, 4096), (4096, 4096), (4096, 10)]
    assert tuple(model.get_submodule("classifier.3").weight.shape) == (4096, 4096)
    assert count(model) - count(plain) == 512 * 4096 + 4096 + 4096 * 4096 + 4096 + 4096 * 10 + 10 - (512 * 10 + 10)


def test_alexnet_has_the_papers_two_convolutions_and_the_parameters_counted_by_hand() -> None:
    with torch.device("meta"):
        model = alexnet((3, 32, 32), 10)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 4}
    assert shapes["features.3.weight"] == (192, 64, 5, 5)
    assert shapes["features.10.weight"] == (256, 256, 3, 3)
    convolutions = 9 * 3 * 64 + 25 * 64 * 192 + 9 * (192 * 384 + 384 * 256 + 256 * 256)
    linear = 1024 * 4096 + 4096 * 4096 + 4096 * 10
    biases = 64 + 192 + 384 + 256 + 256 + 4096 + 4096 + 10
    assert count(model) == convolutions + linear + biases == 23_468_874


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 27, 32), (1, 31, 5)], ids=str)
def test_a_reference_model_gives_logits_for_images_of_any_allowed_shape(name: str, shape: tuple[int, int, int]) -> None:
    if name in ("vgg16", "alexnet"):
        with torch.device("meta"):
            model = MODELS[name](shape, 7).eval()
            assert model(torch.zeros(3, *shape)).shape == (3, 7)
    else:
        assert MODELS[name](shape, 7).eval()(torch.rand(3, *shape)).shape == (3, 7)


def test_smaller_images_are_padded_with_zeros_around_their_middle() -> None:
    model = vgg16((1, 28, 27), 10, width=0.05)
    padded = model.get_submodule("pad")(torch.ones(1, 1, 28, 27))
    assert padded.shape == (1, 1, 32, 32)
    assert padded.sum() == 28 * 27
    assert padded[0, 0, 2:30, 2:29].min() == 1
    assert "pad" not in dict(vgg16((1, 32, 32), 10, width=0.05).named_modules())


@pytest.mark.parametrize("name", ["vgg16", "alexnet"])
@pytest.mark.parametrize("shape", [(3, 33, 32), (3, 32, 224)], ids=str)
def test_a_model_says_which_images_are_too_large_for_it(name: str, shape: tuple[int, int, int]) -> None:
    with pytest.raises(ModelError, match=f"this {name} is for images of up to 32x32, not {shape[1]}x{shape[2]}"):
        MODELS[name](shape, 10)


def test_the_quarter_has_a_quarter_of_the_channels() -> None:
    model = model_builder("vgg16-quarter", (3, 32, 32), 10)()
    assert [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)] == [c // 4 for c in VGG_CHANNELS]


@pytest.mark.parametrize("name", MODELS)
def test_the_layers_generated_by_default_are_all_convolutions_but_the_first(name: str) -> None:
    with torch.device("meta"):
        model = model_builder(name, None, None)()
    convolutions = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    assert select(model, DEFAULT_TARGETS[name]) == convolutions[1:]


def test_a_builder_makes_a_fresh_model_each_time() -> None:
    build = model_builder("small-cnn", (1, 8, 8), 10)
    torch.manual_seed(0)
    first = build()
    torch.manual_seed(0)
    second = build()
    assert first is not second
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_an_unknown_model_names_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no model 'smal-cnn'.*vgg16.*Did you mean 'small-cnn'\?"):
        model_builder("smal-cnn", (1, 8, 8), 10)


# --- a user's own ---------------------------------------------------------------------------------------------------


def write(folder: Path, text: str, name: str = "mine.py") -> str:
    (folder / name).write_text("import torch\nfrom torch import nn\n" + text)
    return str(folder / name)


ECHO = """
class Echo(nn.Module):
    def __init__(self, **given):
        super().__init__()
        self.given = given
"""


@pytest.mark.parametrize(
    "signature, given",
    [
        ("", {}),
        ("num_classes", {"num_classes": 5}),
        ("in_channels, num_classes", {"in_channels": 3, "num_classes": 5}),
        ("*, num_classes, image_shape", {"num_classes": 5, "image_shape": (3, 9, 7)}),
        ("num_classes=2, width=4", {"num_classes": 5, "width": 4}),
        ("in_channels, *rest, **options", {"in_channels": 3}),
    ],
)
def test_what_the_function_takes_is_passed_by_name(tmp_path: Path, signature: str, given: dict[str, object]) -> None:
    names = [part.split("=")[0].strip() for part in signature.split(",") if not part.strip().startswith("*")]
    call = ", ".join(f"{name}={name}" for name in names if name)
    file = write(tmp_path, f"{ECHO}\ndef build({signature}):\n    return Echo({call})\n")
    assert model_builder(f"{file}:build", (3, 9, 7), 5)().given == given


def test_without_data_a_needed_argument_has_a_usual_value_and_a_default_stays(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        f"{ECHO}\ndef build(image_shape, in_channels, num_classes=3):\n"
        "    return Echo(image_shape=image_shape, in_channels=in_channels, num_classes=num_classes)\n",
    )
    given = model_builder(f"{file}:build", None, None)().given
    assert given == {"image_shape": (1, 28, 28), "in_channels": 1, "num_classes": 3}


def test_an_argument_that_cannot_be_given_is_named(tmp_path: Path) -> None:
    file = write(tmp_path, "def build(num_classes, depth, width): return nn.Linear(2, 2)\n")
    with pytest.raises(ModelError, match=r"needs depth, width; it can be given image_shape, in_channels, num_classes"):
        model_builder(f"{file}:build", (1, 8, 8), 10)


def test_a_class_will_do_as_function_and_build_is_the_default(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "class Net(nn.Linear):\n    def __init__(self, num_classes): super().__init__(2, num_classes)\n"
        "def build(): return nn.ReLU()\n",
    )
    assert model_builder(f"{file}:Net", (1, 8, 8), 5)().out_features == 5
    assert isinstance(model_builder(file, (1, 8, 8), 5)(), nn.ReLU)


def test_a_file_with_a_dataclass_and_late_annotations_can_be_run(tmp_path: Path) -> None:
    # dataclasses looks its module up in sys.modules.
    text = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\nfrom torch import nn\n"
        "@dataclass\nclass Options:\n    width: int = 3\n"
        "def build(): return nn.Linear(Options().width, 2)\n"
    )
    (tmp_path / "late.py").write_text(text)
    assert model_builder(f"{tmp_path / 'late.py'}:build", (1, 8, 8), 10)().in_features == 3


def test_two_files_of_one_name_are_two_modules(tmp_path: Path) -> None:
    builders = []
    for size in (2, 3):
        (tmp_path / str(size)).mkdir()
        file = write(tmp_path / str(size), f"SIZE = {size}\ndef build(): return nn.Linear(SIZE, SIZE)\n")
        builders.append(model_builder(f"{file}:build", (1, 8, 8), 10))
    assert [build().in_features for build in builders] == [2, 3]


@pytest.mark.parametrize(
    "text, name, words",
    [
        ("def build(): return 3\n", "build", "returned a int, not an nn.Module"),
        ("def build(): return nn.Linear\n", "build", "returned a type, not an nn.Module"),
        ("def build(): raise ValueError('too wide')\n", "build", "cannot build its model: ValueError: too wide"),
        ("def built(): return nn.ReLU()\n", "build", r"no function 'build'; it has built\. Did you mean 'built'\?"),
        ("def make_net(): return nn.ReLU()\n", "mak_net", r"it has make_net\. Did you mean 'make_net'\?"),
        ("net = nn.ReLU\nbuild = 3\n", "build", "no function 'build'; it has none"),
        ("def make(): return nn.ReLU()\n", "", "no function 'build'; it has make"),
        ("1 / 0\n", "build", "cannot be run: ZeroDivisionError: division by zero"),
        ("def build(:\n", "build", "cannot be run: SyntaxError"),
        ("import no_such_package_anywhere\n", "build", "cannot be run: ModuleNotFoundError"),
    ],
)
def test_what_is_wrong_with_a_users_file_is_said(tmp_path: Path, text: str, name: str, words: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises(ModelError, match=words) as caught:
        model_builder(f"{file}:{name}", (1, 8, 8), 10)()
    assert isinstance(caught.value, AdntnError)
    assert isinstance(caught.value, ValueError)


def test_a_file_that_cannot_be_run_leaves_no_module_behind(tmp_path: Path) -> None:
    file = write(tmp_path, "1 / 0\n", "broken_one.py")
    with pytest.raises(ModelError):
        model_builder(f"{file}:build", (1, 8, 8), 10)
    assert not any("broken_one" in name for name in sys.modules)


def test_a_file_that_is_not_there_or_not_python_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no file .*nothing\.py"):
        model_builder(f"{tmp_path / 'nothing.py'}:build", (1, 8, 8), 10)
    (tmp_path / "net.txt").write_text("def build(): pass\n")
    with pytest.raises(ModelError, match=r"net\.txt' is not a Python file"):
        model_builder(f"{tmp_path / 'net.txt'}:build", (1, 8, 8), 10)
    with pytest.raises(ModelError, match="no file"):
        model_builder(f"{tmp_path}:build", (1, 8, 8), 10)
