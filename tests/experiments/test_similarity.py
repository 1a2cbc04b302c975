"""Linear CKA: 1 for the same features however turned, its unbiased sums, and hooks that leave no trace."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch
from small_models import CONFIG, Net
from torch import Tensor, nn

import adntn
from adntn import CompressionError
from adntn.experiments.similarity import common_layers, feature_similarity, linear_cka


def features(images: int = 12, size: int = 5) -> Tensor:
    return torch.randn(images, size, dtype=torch.float64)


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_rotated_shifted_and_scaled_features_are_the_same() -> None:
    x = features()
    rotation = torch.linalg.qr(features(5, 5))[0]
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, 3 * x @ rotation + 7) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x.float(), (3 * x @ rotation + 7).float()) == pytest.approx(1, abs=1e-5)
    stretched = linear_cka(x, x @ torch.diag(torch.tensor([100.0, 1, 1, 1, 1]).double()))
    assert stretched is not None
    assert stretched < 0.9


def test_the_estimate_is_the_unbiased_one() -> None:
    """By its definition: means over all tuples of different images."""

    def hsic(k: Tensor, l: Tensor) -> float:
        n = range(len(k))
        pairs = sum(float(k[i, j] * l[i, j]) for i, j in permutations(n, 2)) / len(list(permutations(n, 2)))
        threes = sum(float(k[i, j] * l[i, q]) for i, j, q in permutations(n, 3)) / len(list(permutations(n, 3)))
        fours = sum(float(k[i, j] * l[q, r]) for i, j, q, r in permutations(n, 4)) / len(list(permutations(n, 4)))
        return pairs + fours - 2 * threes

    x, y = features(6, 3), features(6, 4)
    k, l = x @ x.T, y @ y.T
    expected = hsic(k, l) / (hsic(k, k) * hsic(l, l)) ** 0.5
    assert linear_cka(x, y) == pytest.approx(expected, abs=1e-10)


def test_independent_features_have_none_on_average() -> None:
    found = [linear_cka(features(16, 30), features(16, 30)) for _ in range(100)]
    assert sum(value for value in found if value is not None) / 100 == pytest.approx(0, abs=0.03)


def test_features_that_do_not_vary_and_too_few_images_have_no_answer() -> None:
    x = features()
    assert linear_cka(x, torch.full((12, 3), 0.1)) is None
    assert linear_cka(x[:3], x[:3]) is None


def test_layers_are_compared_by_name_and_generated_ones_count() -> None:
    teacher = Net().eval()
    model = Net().eval()
    model.load_state_dict(teacher.state_dict())
    batches = [torch.randn(8, 3, 4, 4), torch.randn(8, 3, 4, 4), torch.randn(3, 3, 4, 4)]
    same = feature_similarity(model, teacher, batches)
    assert list(same) == common_layers(model, teacher) == ["features.0", "features.3", "head.0", "head.2"]
    assert list(same.values()) == pytest.approx([1] * 4, abs=1e-6)
    adntn.compress_(model, CONFIG, ["features.3"])
    changed = feature_similarity(model, teacher, batches)
    assert changed["features.0"] == pytest.approx(1, abs=1e-6)
    assert list(changed) == list(same)
    assert all(value is not None and value < 0.99 for value in list(changed.values())[1:])
    assert feature_similarity(model, teacher, batches, ["head"]) == {"head": changed["head.2"]}
    assert hooks(model) == hooks(teacher) == 0


def test_batches_are_summed_up() -> None:
    teacher, model = nn.Sequential(nn.Linear(4, 6)), nn.Sequential(nn.Linear(4, 3))
    one, other = torch.randn(10, 4), torch.randn(7, 4)
    for batch in (one, other):
        (alone,) = feature_similarity(model, teacher, [batch]).values()
        assert alone == pytest.approx(linear_cka(model(batch), teacher(batch)), abs=1e-6)
    (both,) = feature_similarity(model, teacher, [one, other]).values()
    (twice,) = feature_similarity(model, teacher, [one, other, one, other]).values()
    assert both == pytest.approx(twice, abs=1e-9)
    assert both != pytest.approx(alone, abs=1e-6)


class Unlike(nn.Module):
    """A layer that is never called, one called twice, and an attention, which returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.twice = nn.Linear(4, 4), nn.Linear(4, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.twice(self.twice(x))
        result: Tensor = self.attention(x, x, x)[0]
        return result


def test_layers_that_give_nothing_are_left_out_unless_asked_for() -> None:
    teacher, model = Unlike().eval(), Unlike().eval()
    batches = [torch.randn(8, 3, 4)]
    assert list(feature_similarity(model, teacher, batches)) == ["twice", "attention"]
    with pytest.raises(CompressionError, match="'unused' of the model gives no features"):
        feature_similarity(model, teacher, batches, ["twice", "unused"])
    with pytest.raises(CompressionError, match=r"no layer 'twise'.*Did you mean 'twice'"):
        feature_similarity(model, teacher, batches, ["twise"])
    assert hooks(model) == hooks(teacher) == 0


@pytest.mark.slow
def test_a_compiled_network_is_seen_through() -> None:
    teacher = nn.Sequential(nn.Linear(4, 6))
    compiled = torch.compile(nn.Sequential(nn.Linear(4, 3)))
    assert isinstance(compiled, nn.Module)
    assert list(feature_similarity(compiled, teacher, [torch.randn(8, 4)])) == ["0"]
