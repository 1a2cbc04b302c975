"""The report: its numbers, and how it reads."""

from __future__ import annotations

import pytest
import torch
from small_models import CONFIG, Net, names, pair
from torch import nn

import adntn
from adntn import (
    compress_,
)

pytestmark = pytest.mark.usefixtures("few_objects")


# --- the report -------------------------------------------------------------------------------------------------------


def mixed_report(dtype: torch.dtype = torch.float32) -> adntn.CompressionReport:
    layers = (nn.Conv2d(4, 8, 3), nn.Linear(64, 64), nn.Linear(11, 5, bias=False), nn.BatchNorm1d(7))
    paired = CONFIG.replace(order="paired", latent_order=2)
    return compress_(nn.Sequential(*layers).to(dtype), CONFIG, ["0", "1", "2"], overrides={"2": paired})


def test_the_report_has_the_numbers_of_every_layer() -> None:
    conv, square, padded = mixed_report().layers
    # 3 + 2 + 4 modes, H = 5: one level; root 2**5, five cores of 2x2x2.
    assert (conv.name, conv.kind, conv.shape, conv.topology) == ("0", "Conv2d", (8, 4, 3, 3), "ttn")
    assert (conv.dense, conv.padded, conv.generated) == (8 * 4 * 9, 8 * 4 * 16, 32 + 40)
    assert (conv.dense_bytes, conv.generated_bytes, conv.ratio) == (4 * 288, 4 * 72, 4.0)
    # 6 + 6 modes, H = 6: 5 -> 6 -> 12; root 2**5, a bridge of one core and four carries of 2x2, six cores.
    assert (square.dense, square.padded, square.generated) == (4096, 4096, 32 + 8 + 16 + 48)
    assert (square.rank_bound, square.way) == (8, "factored")
    assert "multiply-adds" in square.reason
    # 3 + 4 modes, H = 4: 2 -> 4 -> 8; the eighth mode is cut off. No split: only the sides bound the rank.
    assert (padded.shape, padded.dense, padded.padded, padded.generated) == ((5, 11), 55, 8 * 16, 4 + 16 + 32)
    assert (padded.rank_bound, padded.way) == (5, "dense")


def test_the_report_sums_up_layers_and_model() -> None:
    report = mixed_report()
    assert (report.dense, report.generated) == (288 + 4096 + 55, 72 + 104 + 52)
    assert report.ratio == pytest.approx(4439 / 228)
    assert (report.model_before, report.model_after) == (4439 + 8 + 64 + 14, 228 + 8 + 64 + 14)
    assert report.model_ratio == pytest.approx(4525 / 314)


def test_the_report_counts_bytes_in_the_layers_own_type() -> None:
    assert [row.generated_bytes for row in mixed_report(torch.bfloat16).layers] == [144, 208, 104]
    assert [row.dense_bytes for row in mixed_report(torch.float64).layers] == [2304, 32768, 440]


def test_the_printed_report_has_a_row_a_layer_and_the_sums() -> None:
    lines = [line.split() for line in str(mixed_report()).splitlines()]
    assert lines[0][:5] == ["layer", "weight", "topology", "P", "P"]
    assert lines[2] == ["0", "8x4x3x3", "ttn", "288", "512", "72", "4.0x", "288", "4", "factored"]
    assert lines[3] == ["1", "64x64", "ttn", "4,096", "4,096", "104", "39.4x", "416", "8", "factored"]
    assert lines[4] == ["2", "5x11", "ttn", "55", "128", "52", "1.1x", "208", "5", "dense"]
    assert lines[6] == ["these", "layers", "4,439", "4,736", "228", "19.5x", "912"]
    assert lines[7] == ["whole", "model", "4,525", "314", "14.4x"]
    assert len(lines) == 8


def test_a_model_without_generated_layers_has_an_empty_report() -> None:
    report = adntn.describe(pair())
    assert report.layers == ()
    assert report.model_before == report.model_after == 144
    assert "whole model" in str(report)


def test_the_report_of_a_model_covers_what_was_generated_before() -> None:
    model = Net()
    compress_(model, CONFIG, "head.0")
    report = compress_(model, CONFIG, "head.2")
    assert names(report) == ["head.0", "head.2"]
    assert report == adntn.describe(model)
    assert report.model_before == sum(p.numel() for p in Net().parameters())
