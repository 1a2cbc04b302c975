"""The plots of a run appear, have the size that was meant, and show every stage, control and seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.image
import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes
from report_makers import report

from adntn.report import curves
from adntn.report.curves import stages_plot, time_plot
from adntn.report.schema import RunReport


def small() -> dict[str, Any]:
    """A run of one stage that nobody tested, beside nothing."""
    values = {name: report()[name] for name in ("title", "data", "model")}
    return {**values, "stages": [{"kind": "select", "numbers": 0, "file_bytes": 0, "validation": 0.0}]}


def all_of_chance() -> dict[str, Any]:
    values = report()
    for each in values["stages"]:
        each.update(validation=0.1, test=0.1, curve=[])
    return values


@pytest.mark.parametrize("plot", [stages_plot, time_plot])
@pytest.mark.parametrize("values", [report(), small(), all_of_chance()], ids=["whole", "small", "chance"])
def test_the_plot_is_a_picture(tmp_path: Path, plot: Any, values: dict[str, Any]) -> None:
    path = tmp_path / "plots" / "a.png"
    plot(RunReport.from_dict(values), path)
    pixels = matplotlib.image.imread(path)
    assert pixels.shape[1] >= 7.6 * 150
    assert pixels[..., :3].std() > 0.05
    assert not plt.get_fignums()


def drawn(monkeypatch: pytest.MonkeyPatch, plot: Any, values: dict[str, Any]) -> list[Axes]:
    figures: list[Any] = []
    monkeypatch.setattr(curves, "write_figure", lambda figure, path: figures.append(figure))
    plot(RunReport.from_dict(values), Path("unused"))
    axes: list[Axes] = figures[0].axes
    return axes


def test_stages_and_controls_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    top, bottom = drawn(monkeypatch, stages_plot, report())
    names = [label.get_text() for label in bottom.get_xticklabels()]
    assert names[:6] == ["dense", "select", "warm-start", "blocks", "fine-tune 1", "grow"]
    assert names[-3:] == ["from scratch", "low rank", "narrow dense"]
    figures = {text.get_text() for text in top.texts}
    assert {"91.7", "9.8", "63.7", "88.0", "controls"} <= figures
    assert {"324k", "80.1k", "7.41k", "20.8k"} <= {text.get_text() for text in bottom.texts}
    assert bottom.get_yscale() == "log"
    low, high = top.get_ylim()
    assert 80 < low < 86  # three stages far below the others do not press those together
    assert all(low < y < high for line in top.lines if len(line.get_xdata()) > 2 for y in line.get_ydata())
    seeds = [line for line in top.lines if line.get_marker() == "o" and line.get_color() == "black"]
    assert [len(line.get_xdata()) for line in seeds] == [3, 3, 3]


def test_neither_the_result_nor_a_control_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    values = report()
    values["stages"][-1].update(validation=0.4, test=0.41)
    values["controls"][1]["test"] = [0.3, 0.8]
    top, _ = drawn(monkeypatch, stages_plot, values)
    low, _ = top.get_ylim()
    assert low < 30
    (beside,) = [line for line in top.lines if line.get_marker() == "o" and list(line.get_ydata()) == [30.0, 80.0]]
    assert beside.get_color() == "black"
    (axes,) = drawn(monkeypatch, time_plot, values)
    assert axes.get_ylim()[0] < 40


def test_time_runs_on_from_stage_to_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    values = report()
    (axes,) = drawn(monkeypatch, time_plot, values)
    lines = [line for line in axes.lines if str(line.get_label()).split(",")[0].startswith("fine-tune")]
    began = sum(stage["seconds"] for stage in values["stages"][:3])
    assert lines[0].get_xdata()[0] == pytest.approx(began / 60)
    assert lines[0].get_xdata()[-1] == pytest.approx((began + 905) / 60)
    assert lines[0].get_ydata()[0] == pytest.approx(64.12)
    assert len(lines[0].get_xdata()) == 1 + 7 + 1
    assert axes.get_xlabel() == "minutes of training"
