"""What the site needs beyond its plugins: the benchmarks' results, and a look at what came out.

A page names such a file by its path, as ``../benchmarks/results/speed.json``, so that the link works where the
repository is browsed too. The site has a copy of each under the path that it has in the repository.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
RESULTS = "benchmarks/results"

_SECTION = re.compile(r'^--8<-- "README\.md:(\w+)"$', re.MULTILINE)
_CODE_IN_CELL = re.compile(r"(?<=<code>)\w[\w/]*\.py::\w+(?=</code>)")
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):<?\S+")
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>|"""
    r"""<link\b(?![^>]*\brel=["']?canonical)[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for path in sorted(path for path in (ROOT / RESULTS).iterdir() if path.suffix in (".json", ".png")):
        files.append(File.generated(config, f"{RESULTS}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    # docs/ is the root of the site: what the README links to lies one folder nearer, as do the copies.
    markdown = _SECTION.sub(lambda section: readme(section[1]).replace("](docs/", "]("), markdown)
    return markdown.replace(f"../{RESULTS}/", f"{RESULTS}/")


def readme(section: str) -> str:
    """Return a section of the README, as pymdownx.snippets marks them."""
    text = (ROOT / "README.md").read_text()
    return text.split(f"<!-- --8<-- [start:{section}] -->\n")[1].split(f"<!-- --8<-- [end:{section}] -->")[0]


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    # Long names in tables break at their underscores, not in the middle of a word; a mean stays with its deviation.
    html = re.sub(r"(?<=\d) ± (?=\d)", "\u00a0±\u00a0", html)
    return _CODE_IN_CELL.sub(lambda cell: re.sub(r"(?<=\w)(_|::)(?=\w)", r"\1<wbr>", cell[0]), html)


def on_post_build(config: MkDocsConfig) -> None:
    for page in sorted(Path(config["site_dir"]).rglob("*.html")):
        text = page.read_text()
        for what, pattern in (("fetches from elsewhere", _FETCHED), ("shows markup meant for the code", _ROLE)):
            found = pattern.search(text)
            if found is not None:
                raise PluginError(f"{page} {what}: {found[0]}")
