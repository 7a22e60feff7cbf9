"""Builds the site: python docs/site/build.py [--without-notebooks]

Writes its sources into build/docs (docs/*.md, the root's texts, the API reference, notebooks as they run), has Zensical
make pages of them, and puts formulas into these as MathML, which browsers draw without a script. Any warning ends it.
"""

import argparse
import html
import os
import posixpath
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import griffe
import latex2mathml.converter
import nbclient
import nbformat

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "build" / "docs"
TEXTS = {"ARCHITECTURE.md": "architecture.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Texts of the repository's root, and their pages."""
LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)]*)?\))")
FORMULA = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.DOTALL)
MARK = "<!-- explorers -->"
"""Where the gallery has its list of explorers."""
FOREIGN = re.compile(r'<script src="?https?://[^>]*></script>')
"""Zensical's pages ask another host for what makes the search work from disk; worker.js does the same."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--without-notebooks", action="store_true", help="do not run the notebooks")
    arguments = parser.parse_args()
    shutil.rmtree(SOURCES, ignore_errors=True)
    for name, content in _sources(execute=not arguments.without_notebooks):
        path = SOURCES / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    _check_navigation()
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False)
    if done.returncode == 0:
        worker = "<script>" + (ROOT / "docs" / "site" / "worker.js").read_text() + "</script>"
        for path in (ROOT / "site").rglob("*.html"):
            if "explorers" not in path.parts:
                path.write_text(FOREIGN.sub(lambda _: worker, FORMULA.sub(_drawn, path.read_text())))
    return done.returncode


def _sources(execute: bool) -> Iterator[tuple[str, str | bytes]]:
    """(name, content) of every file that the site is made of."""
    explorers = _explorers()
    for path in sorted((ROOT / "docs").glob("*.md")):
        text = path.read_text()
        if path.name == "gallery.md":
            links = [f"* [{name}](explorers/{name}/{page.name})" for name, page in explorers]
            text = text.replace(MARK, "\n".join(links))
        yield path.name, _relinked(text, "docs")
    for name, page in explorers:
        yield f"explorers/{name}/{page.name}", page.read_bytes()
        for data in page.with_name(f"{page.stem}-data").glob("*"):  # of a page above 15 MB
            yield f"explorers/{name}/{data.parent.name}/{data.name}", data.read_bytes()
    for text, page in TEXTS.items():
        yield page, _relinked((ROOT / text).read_text(), "")
    for path in (*sorted((ROOT / "docs" / "images").iterdir()), ROOT / "docs" / "site" / "extra.css"):
        yield str(path.relative_to(ROOT / "docs")), path.read_bytes()
    yield from _reference()
    for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb")):
        yield f"notebooks/{path.name}", path.read_bytes()
        yield from _notebook(path, execute)
    for name in sorted(_linked_files()):
        yield name, (ROOT / name).read_bytes()


def _check_navigation() -> None:
    """Every page is in the navigation, and the other way round."""
    navigation = set(re.findall(r"[\w/]+\.md$", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2], re.MULTILINE))
    pages = {str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.md")}
    if navigation != pages:
        sys.exit(f"error: mkdocs.yml and the pages differ in {', '.join(sorted(navigation ^ pages))}")


def _explorers() -> list[tuple[str, Path]]:
    """(name, page) of the explorers of docs/explorers/ and of runs/: of single runs, and of several together."""
    found = [(path.parent.relative_to(ROOT / "runs"), path) for path in (ROOT / "runs").glob("**/report.html")]
    tables = [(path.with_suffix("").relative_to(ROOT / "runs"), path) for path in (ROOT / "runs").glob("*.html")]
    kept = [(Path(path.stem), path) for path in (ROOT / "docs" / "explorers").glob("*.html")]
    return sorted(("-".join(name.parts), path) for name, path in kept + found + tables)


def _relinked(markdown: str, folder: str) -> str:
    """A text of `folder` with links between the root and docs/ as links between pages, which all lie side by side."""

    def page(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, match[2]))
        return match[1] + TEXTS.get(target, target.removeprefix("docs/")) + match[3]

    return LINK.sub(page, markdown)


def _linked_files() -> set[str]:
    """Files outside docs/ that its pages link to, but for texts of the root."""
    links = [posixpath.normpath(posixpath.join("docs", link))
             for path in (ROOT / "docs").glob("*.md") for _, link, _ in LINK.findall(path.read_text())]
    return {link for link in links if not link.startswith("docs/") and link not in TEXTS and (ROOT / link).is_file()}


def _drawn(match: re.Match[str]) -> str:
    latex = re.sub(r"^\\[\[(]|\\[\])]$", "", html.unescape(match[2]).strip())
    if match[1] == "div":
        return f'<div class="formula">{latex2mathml.converter.convert(latex, display="block")}</div>'
    return latex2mathml.converter.convert(latex)


def _reference() -> Iterator[tuple[str, str]]:
    """(page, content): one page for each module in the list of public names, and one for the other names."""
    package: Any = griffe.load("jaxablate", search_paths=[str(ROOT)])
    listed, written = _listed(ROOT / "jaxablate"), set[str]()
    for name in sorted(name for name in listed if package[name].is_module and not package.members[name].is_alias):
        yield f"api/{name}.md", "\n".join(_module(f"ja.{name}", package[name], _public(package[name]), written))
    names = [(name, path) for name, path in _public(package) if path.count(".") > 1]
    yield "api/index.md", "\n".join(_module("jaxablate", package, names, written))


def _module(title: str, module: Any, names: list[tuple[str, str]], written: set[str]) -> Iterator[str]:
    """Lines of a module's page; what another page has already is a link to it."""
    yield from (f"# {title}", "", f"::: {module.path}", "    options:", "      members: false",
                "      show_root_heading: false", "      show_root_toc_entry: false", "")
    for name, path in names:
        yield f"## {name}\n\n[`{path}`][{path}]\n" if path in written else f"::: {path}\n"
        written.add(path)


def _public(module: Any) -> list[tuple[str, str]]:
    """(name, full name of what it stands for) of a module's public names, in its own order."""
    folder = Path(module.filepath).parent if module.is_package or module.parent is None else None
    names = module.exports or (_listed(folder) if folder else [])
    if names:
        return [(name, module.imports.get(name, f"{module.path}.{name}")) for name in names]
    own = [member for name, member in module.members.items() if not member.is_alias and not name.startswith("_")]
    return [found for member in own for found in (
        _public(member) if member.is_module else [(member.name, member.path)] if member.docstring else [])]


def _listed(folder: Path) -> list[str]:
    """Names of a package's lazy list, in its order."""
    return re.findall(r"^    from [\w.]+ import \w+ as (\w+)$", (folder / "__init__.py").read_text(), re.MULTILINE)


def _notebook(path: Path, execute: bool) -> Iterator[tuple[str, str]]:
    """(name, content) of a notebook's page and of its pictures, after it has run top to bottom in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    if execute:
        with tempfile.TemporaryDirectory() as folder:
            nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": folder}}).execute()
    lines, pictures = [], 0
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            lines += [cell.source, ""]
            continue
        lines += ["```python", cell.source, "```", ""]
        drawn = [output.data["image/svg+xml"] for output in cell.outputs if "image/svg+xml" in output.get("data", {})]
        printed = [output.text for output in cell.outputs if output.output_type == "stream"]
        if printed:
            lines += ["```text", "".join(printed).rstrip("\n"), "```", ""]
        for picture in drawn:
            pictures += 1
            yield f"notebooks/{path.stem}-{pictures}.svg", picture
            lines += [f"![What this cell draws]({path.stem}-{pictures}.svg)", ""]
    lines.insert(1, f"[The notebook]({path.name}) to run yourself. What it prints here, it printed when this page was "
                    "built.\n")
    yield f"notebooks/{path.stem}.md", "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
