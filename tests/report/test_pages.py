"""Pages say the same in Markdown, in HTML and in text, whatever signs are in them."""

from __future__ import annotations

import base64
from html.parser import HTMLParser
from pathlib import Path

import pytest

from adntn.report.figures import duration, mean_and_deviation, points, short, times
from adntn.report.pages import Code, Page, Picture, Section, Table, to_html, to_markdown, to_text

TABLE = Table(("layer", "a|b", "note"), (("x<y>", "1,000", "one\ntwo"), ("z", "2", "")), words=("note",), strong=(1,))


class Tags(HTMLParser):
    """Checks that every tag is closed, and keeps text and sources."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def page(folder: Path) -> Page:
    (folder / "plots").mkdir()
    picture = folder / "plots" / "a.png"
    picture.write_bytes(b"\x89PNG")
    code = Code("The recipe", "lr = 1\n```\n", "toml")
    return Page("A < B", "lead & more", (Section("One", ("text $5 ${x}", TABLE, Picture(picture, 'a "plot"'), code)),))


def test_markdown(tmp_path: Path) -> None:
    text = to_markdown(page(tmp_path), tmp_path)
    assert text.startswith(
        "# A < B\n\nlead & more\n\n## One\n\ntext $5 ${x}\n\n| layer | a\\|b | note |\n|---|---:|---|\n"
    )
    assert "| x<y> | 1,000 | one two |\n| **z** | **2** |  |\n" in text
    assert '![a "plot"](plots/a.png)' in text
    assert text.endswith("The recipe:\n\n````toml\nlr = 1\n```\n````\n")


def test_html_is_whole_and_fetches_nothing(tmp_path: Path) -> None:
    text = to_html(page(tmp_path))
    tags = Tags()
    tags.feed(text)
    assert tags.open == []
    for word in ("A < B", "lead & more", "text $5 ${x}", "x<y>", "a|b", "lr = 1\n```"):
        assert word in tags.text
    assert tags.sources == ["data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()]
    assert "http" not in text
    assert '<tr class="strong"><td class="word">z</td><td>2</td>' in text


def test_text() -> None:
    assert to_text(TABLE).splitlines() == [
        "layer    a|b  note",
        "---------------------",
        "x<y>   1,000  one two",
        "z          2",
    ]


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (3599.4, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (None, "–"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_figures() -> None:
    assert [short(n) for n in (7, 999, 1000, 12345, 999_600, 2.5e9)] == ["7", "999", "1k", "12.3k", "1M", "2.5G"]
    assert [times(n) for n in (1, 9.94, 9.96, 1234)] == ["1.0x", "9.9x", "10x", "1,234x"]
    assert mean_and_deviation([0.5, 0.7]) == "60.00 ± 14.14"
    assert mean_and_deviation([0.5]) == "50.00"
    assert points(-0.001) == "−0.10"
