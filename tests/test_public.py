"""The names of ``import jaxablate as ja`` and of its systems, each imported when it is first used."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import jaxablate as ja

ROOT = Path(__file__).parent.parent


def _listed(path: str) -> list[tuple[str, str]]:
    """(public name, full name of what it stands for) of every import under ``with ... lazy_api_imports``."""
    blocks = [node for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.With)]
    return [(alias.asname or alias.name, f"{node.module}.{alias.name}")
            for block in blocks for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names]


PACKAGES = [str(path.parent.relative_to(ROOT)) for path in sorted(ROOT.glob("jaxablate/**/__init__.py"))
            if _listed(str(path.relative_to(ROOT)))]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_name_is_the_documented_object_of_its_module(package):
    listed = _listed(f"{package}/__init__.py")
    assert len({name for name, _ in listed}) == len(listed) > 0
    for name, full in listed:
        home, _, member = full.rpartition(".")
        public = getattr(importlib.import_module(package.replace("/", ".")), name)
        expected = getattr(importlib.import_module(home), member)
        assert public is expected or public.__name__ == full  # a module stays behind its lazy stand-in
        assert public.__doc__, f"{package}.{name} has no docstring"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="Configs"):
        _ = ja.Configs


def test_functions_are_not_hidden_by_modules():
    """`ja.data.prepare` is the function, whatever modules of the package were imported before."""
    code = ("import jaxablate.data.preparation, jaxablate.training.loop, jaxablate as ja\n"
            "print(callable(ja.data.prepare), callable(ja.train))")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("True True", "")


def test_the_citation_has_the_version():
    assert f"\nversion: {ja.__version__}\n" in (ROOT / "CITATION.cff").read_text()
