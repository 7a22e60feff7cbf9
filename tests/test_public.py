"""The names of ``import jaxablate as ja``, which one file lists three times: for Python, for tools and for readers."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxablate as ja

ROOT = Path(__file__).parent.parent


def _imported_for_type_checkers() -> set[tuple[str, str]]:
    """(name, full name of what it stands for) of each import under TYPE_CHECKING."""
    tree = ast.parse(Path(ja.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    return {(alias.name, f"{node.module}.{alias.name}") for node in block.body for alias in node.names}


def test_the_three_lists_name_the_same_things():
    modules = {(name, f"jaxablate.{path}") for name, path in ja._MODULES.items()}
    members = {(name, f"jaxablate.{home}.{name}") for name, home in ja._HOMES.items()}
    assert _imported_for_type_checkers() == modules | members
    assert sorted(ja.__all__) == sorted(["__version__", *ja._MODULES, *ja._HOMES])
    assert set(ja.__all__) <= set(dir(ja))


def test_a_name_is_the_very_object_of_its_module():
    from jaxablate.models.decoder import SelfAblatingTransformer
    from jaxablate.training.loop import train

    assert ja.SelfAblatingTransformer is SelfAblatingTransformer
    assert ja.train is train
    assert ja.gating is sys.modules["jaxablate.gating"]
    assert ja.interop.transformer_from_reference.__module__ == "jaxablate.interop.reference"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'jaxablate' has no attribute 'Configs'"):
        _ = ja.Configs


def test_a_module_and_a_name_of_the_same_kind_do_not_hide_each_other():
    """`ja.prepare` is the function although `jaxablate.data.prepare` is a module, and `ja.corpus` stays a module."""
    code = "import jaxablate.data.prepare, jaxablate as ja; ja.prepare.__call__; print(ja.corpus.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("jaxablate.data.corpus", "")


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == ja.__version__
    assert f"\nversion: {ja.__version__}\n" in (ROOT / "CITATION.cff").read_text()
