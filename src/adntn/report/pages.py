"""A page of text, tables and pictures, as Markdown, as one HTML file, and its tables as plain text."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

__all__ = ["Code", "Page", "Picture", "Section", "Table", "markdown_table", "to_html", "to_markdown", "to_text"]


@dataclass(frozen=True)
class Table:
    """A table of finished cells.

    Attributes:
        titles: of the columns.
        rows: a cell a column.
        words: columns that hold words and stand on the left; all others hold figures.
        strong: numbers of the rows to be seen first.
    """

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: tuple[str, ...] = ()
    strong: tuple[int, ...] = ()

    def is_word(self, column: int) -> bool:
        return column == 0 or self.titles[column] in self.words


@dataclass(frozen=True)
class Picture:
    """A PNG file.

    Attributes:
        path: of the file.
        says: what is to be seen, for those who do not see it.
    """

    path: Path
    says: str


@dataclass(frozen=True)
class Code:
    """Text to be shown as it is, folded up in HTML.

    Attributes:
        title: of the fold.
        text: the text.
        language: for the Markdown fence.
    """

    title: str
    text: str
    language: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page: a heading, and paragraphs, tables, pictures and code in their order."""

    title: str
    parts: tuple[str | Table | Picture | Code, ...]


@dataclass(frozen=True)
class Page:
    """A title, what stands right below it, and sections."""

    title: str
    lead: str
    sections: tuple[Section, ...]


# --- Markdown -------------------------------------------------------------------------------------------------------


def to_markdown(page: Page, folder: Path) -> str:
    """Return a page as Markdown that lies in a folder; pictures are named relative to it."""
    blocks = [f"# {_one_line(page.title)}", page.lead]
    for section in page.sections:
        blocks.append(f"## {_one_line(section.title)}")
        blocks += [_markdown_part(part, folder) for part in section.parts]
    return "\n\n".join(blocks) + "\n"


def _markdown_part(part: str | Table | Picture | Code, folder: Path) -> str:
    if isinstance(part, Table):
        return markdown_table(part)
    if isinstance(part, Picture):
        return f"![{_one_line(part.says)}]({part.path.relative_to(folder).as_posix()})"
    if isinstance(part, Code):
        fence = "`" * max(3, 1 + _longest_run(part.text, "`"))
        return f"{part.title}:\n\n{fence}{part.language}\n{part.text.rstrip()}\n{fence}"
    return part


def markdown_table(table: Table) -> str:
    """Return a table in Markdown."""
    rule = "".join("---|" if table.is_word(column) else "---:|" for column in range(len(table.titles)))
    rows = [
        [f"**{cell}**" if cell and number in table.strong else cell for cell in map(_markdown_cell, row)]
        for number, row in enumerate(table.rows)
    ]
    return "\n".join([_markdown_row(map(_markdown_cell, table.titles)), f"|{rule}", *map(_markdown_row, rows)])


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _markdown_cell(text: str) -> str:
    return _one_line(text).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _longest_run(text: str, sign: str) -> int:
    longest = 0
    while sign * (longest + 1) in text:
        longest += 1
    return longest


# --- plain text -----------------------------------------------------------------------------------------------------


def to_text(table: Table) -> str:
    """Return a table as lines of text, columns in line."""
    rows = [tuple(map(_one_line, row)) for row in (table.titles, *table.rows)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(table.titles))]
    lines = []
    for row in rows:
        cells = (
            cell.ljust(width) if table.is_word(column) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


# --- HTML -----------------------------------------------------------------------------------------------------------

# Signs from which on a cell may be broken into lines.
_LONG = 30

# Everything is inside the file: nothing is fetched when it is opened.
_HTML = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { color-scheme: light; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 64rem; color: #1b1f24; background: #fff;
  font: 16px/1.5 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .75rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: .75rem; border-top: 1px solid #d8dee4; }
p { margin: .6rem 0; max-width: 48rem; }
.lead { font-size: 1.1rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e7ebef; }
th { font-weight: 600; color: #57606a; border-bottom: 2px solid #c6ccd2; vertical-align: bottom; }
td:first-child, th:first-child { padding-left: .2rem; }
.word { text-align: left; }
td.long { white-space: normal; min-width: 14rem; }
tr.strong td { font-weight: 650; background: #eef5fc; }
tbody tr:hover td { background: #f6f8fa; }
img { display: block; max-width: 100%; height: auto; margin: 1rem 0; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: #0a5ca8; }
pre { overflow-x: auto; padding: .8rem 1rem; background: #f6f8fa; border-radius: 6px; font-size: .85rem; }
@media print { details { display: none; } body { max-width: none; } }
</style>
</head>
<body>
<main>
<h1>$title</h1>
<p class="lead">$lead</p>
$sections
</main>
</body>
</html>
""")


def to_html(page: Page) -> str:
    """Return a page as one HTML file, pictures inside."""
    sections = "\n".join(
        "\n".join([f"<h2>{html.escape(section.title)}</h2>", *map(_html_part, section.parts)])
        for section in page.sections
    )
    return _HTML.substitute(title=html.escape(page.title), lead=html.escape(page.lead), sections=sections)


def _html_part(part: str | Table | Picture | Code) -> str:
    if isinstance(part, Table):
        return _html_table(part)
    if isinstance(part, Picture):
        content = base64.b64encode(part.path.read_bytes()).decode()
        return f'<img alt="{html.escape(part.says)}" src="data:image/png;base64,{content}">'
    if isinstance(part, Code):
        text = html.escape(part.text.rstrip())
        return f"<details><summary>{html.escape(part.title)}</summary><pre>{text}</pre></details>"
    return f"<p>{html.escape(part)}</p>"


def _html_table(table: Table) -> str:
    def one(column: int, cell: str, tag: str) -> str:
        kinds = ["word"] * table.is_word(column) + ["long"] * (len(cell) > _LONG)
        marks = f' class="{" ".join(kinds)}"' if kinds else ""
        return f"<{tag}{marks}>{html.escape(cell)}</{tag}>"

    def row(cells: Sequence[str], tag: str) -> str:
        return "".join(one(column, cell, tag) for column, cell in enumerate(cells))

    body = [
        f'<tr class="strong">{row(cells, "td")}</tr>' if number in table.strong else f"<tr>{row(cells, 'td')}</tr>"
        for number, cells in enumerate(table.rows)
    ]
    head = f"<tr>{row(table.titles, 'th')}</tr>"
    inside = "\n".join(body)
    return f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{inside}\n</tbody>\n</table></div>'
