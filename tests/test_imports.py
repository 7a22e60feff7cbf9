"""Who may import whom. The table is the architecture; a test keeps it so."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxablate"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted(
    path
    for pattern in ("*.py", "configs/*.py", "benchmarks/*.py", "tests/*.py")
    for path in ROOT.glob(pattern)
)

_GROUND = {"errors", "config"}
_MODEL = _GROUND | {"files", "gating", "regularizers", "ops", "sharding", "models"}
_EVALUATION = _MODEL | {"circuits", "features", "neurons", "objectives", "reports"}
ALLOWED = {
    "errors": set(),
    "config": {"errors"},
    "files": {"errors"},
    "provenance": _GROUND,
    "ops": _GROUND,
    "gating": _GROUND | {"ops"},
    "regularizers": _GROUND,
    "sharding": _GROUND,
    "models": _MODEL,
    "circuits": _MODEL,
    "features": _MODEL,
    "neurons": _MODEL,
    "objectives": _MODEL,
    "data": _GROUND | {"files"},
    "training": _MODEL | {"objectives", "data", "provenance"},
    "evaluation": _EVALUATION,
    "evaluation.runner": _EVALUATION | {"training", "data", "provenance"},
    "evaluation.subjects": _EVALUATION | {"training", "data", "provenance"},
    "evaluation.classifier.explain_runner": _EVALUATION | {"training", "data", "provenance"},
    "evaluation.circuits.runner": _EVALUATION | {"training", "data", "provenance"},
    "evaluation.match.runner": _EVALUATION | {"training", "data", "provenance"},
    "evaluation.neurons.lookup": _EVALUATION | {"data"},
    "evaluation.neurons.runner": _EVALUATION | {"training", "data", "provenance"},
    "evaluation.autoencoders.runner": _EVALUATION | {"training", "data", "provenance"},
    "reports": {"errors", "provenance"},
    "interop": _MODEL,
}
"""Room, or one file of it -> rooms it may import besides itself. Scripts and `jaxablate/__init__.py` see all."""

HEAVY = ("grain", "jinja2", "matplotlib", "orbax", "scipy.stats", "tensorboardX", "tensorstore", "tiktoken",
         "tokenizers", "torch", "tyro")
"""What `import jaxablate` leaves to the rooms that need it."""


def imports(path: Path) -> list[str]:
    """Full names a file imports, wherever in it: `a.b` for `import a.b`, `a.b.c` for `from a.b import c`."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def module(path: Path) -> str:
    """`training.checkpoint` for jaxablate/training/checkpoint.py, empty for jaxablate/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_only_what_they_may(path):
    name = module(path)
    if not name:
        return
    room = name.split(".")[0]
    assert room in ALLOWED, f"jaxablate/{room} is new; give it a line in ALLOWED"
    allowed = ALLOWED.get(name, ALLOWED[room]) | {room}
    seen = {full.split(".")[1] for full in imports(path) if full.startswith("jaxablate.")}
    assert seen <= allowed, f"{name} must not import {', '.join(sorted(seen - allowed))}"


def test_the_table_has_no_line_without_a_room():
    assert {name.replace(".", "/") for name in ALLOWED} <= {
        str(path.relative_to(PACKAGE).with_suffix("")) for path in [*FILES, *PACKAGE.iterdir()]
    }


@pytest.mark.parametrize("path", FILES + SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_imports_what_the_house_forbids(path):
    names = imports(path)
    forbidden = ("flax.nnx", "jax.experimental.pjit", "jax.experimental.shard_map", "jax.experimental.maps")
    assert not [name for name in names if name.startswith(forbidden)]
    for package, owner in (("orbax", "training.checkpoint"), ("grain", "data.pipeline")):
        if path in FILES and module(path) != owner:
            assert not [name for name in names if name.split(".")[0] == package], f"only {owner} imports {package}"


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + sum(project["optional-dependencies"].values(), [])
    declared = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in requirements}
    providers = importlib.metadata.packages_distributions()
    tops = {name.split(".")[0] for path in FILES for name in imports(path)} - {"jaxablate"} - sys.stdlib_module_names
    for top in tops:
        names = {name.lower().replace("_", "-") for name in providers.get(top, [top])}
        assert names & declared, f"{top} is imported but not in pyproject.toml"


def test_importing_the_package_is_light_and_starts_no_device():
    code = "import sys, jaxablate; print(*sys.modules, sep='\\n')"
    environment = os.environ | {"JAX_PLATFORMS": "no_such_device"}  # asking for any device would fail
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "jaxablate" in loaded
    assert not [name for name in loaded if name.startswith(HEAVY)]


def test_every_public_name_is_there_and_documented():
    import jaxablate

    assert jaxablate.__all__
    for name in jaxablate.__all__:
        assert getattr(jaxablate, name).__doc__, name
