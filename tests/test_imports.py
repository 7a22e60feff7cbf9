"""Who may import whom. The table is the architecture; a test keeps it so."""

import ast
import functools
import importlib.metadata
import itertools
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxablate"
FILES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = [path for pattern in ("*.py", "configs/*.py", "benchmarks/*.py", "tests/**/*.py")
           for path in ROOT.glob(pattern)]

_MATHS = {"errors", "config", "types", "registry"}
_MODELS = _MATHS | {"gating", "ops", "regularizers", "sharding", "models"}
_TOPICS = _MODELS | {"stats", "files"}
_RUNS = _TOPICS | {"circuits", "neurons", "data", "provenance"}
_EVERYTHING = _RUNS | {"objectives", "features", "classifier", "runs", "training", "reports", "suites", "interop",
                       "exits", "terminal", "sweep"}
ALLOWED = {
    "errors": set(),
    "exits": {"errors", "terminal"},
    "types": set(),
    "config": {"errors", "gating", "registry"},
    "stats": {"errors"},
    "registry": {"errors"},
    "files": {"errors"},
    "sweep": {"errors", "config"},
    "provenance": {"errors", "config"},
    "terminal": set(),
    "ops": _MATHS,
    "gating": _MATHS | {"ops"},
    "regularizers": _MATHS | {"ops"},
    "sharding": _MATHS | {"ops"},
    "models": _MODELS,
    "objectives": _MODELS,
    "circuits": _TOPICS,
    "features": _TOPICS,
    "neurons": _TOPICS,
    "classifier": _TOPICS | {"data", "objectives"},  # the public names of everything about text classifiers
    "data": {"errors", "config", "exits", "files", "terminal", "types"},
    "runs": _RUNS,
    "training": _RUNS | {"runs", "objectives", "exits", "terminal"},
    "reports": {"errors", "config", "files", "provenance", "stats", "terminal", "types"},
    "suites": _EVERYTHING - {"training", "interop", "sweep"},
    "commands": _EVERYTHING,
    "interop": _MODELS | {"stats", "files"},
}
"""Room -> rooms it may import, lazily or not, besides itself. Scripts, `jaxablate/__init__.py` and `__main__.py` see
all; no room imports `commands`."""

BANNED = ("flax.nnx", "jax.experimental.pjit", "jax.experimental.shard_map", "jax.experimental.maps")
OWNED = {"orbax": "runs.checkpoint", "grain": "data.pipeline"}
"""Package -> the one file that imports it."""

HEAVY = ("grain", "jinja2", "orbax", "scipy.stats", "tensorboardX", "tensorstore", "tiktoken",
         "tokenizers", "torch", "tyro", "vl_convert")
"""What `import jaxablate` leaves to the rooms that need it."""


@functools.cache
def imports(path: Path) -> list[str]:
    """Full names a file imports, wherever in it: `a.b` for `import a.b`, `a.b.c` for `from a.b import c`."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def module(path: Path) -> str:
    """`training.checkpoint` for jaxablate/training/checkpoint.py, empty for jaxablate/__init__.py."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_rooms_import_only_what_they_may():
    wrong = []
    for path in FILES:
        room = module(path).split(".")[0]
        if room in ("", "__main__"):
            continue
        assert room in ALLOWED, f"jaxablate/{room} is new; give it a line in ALLOWED"
        imported = {name.split(".")[1] for name in imports(path) if name.startswith("jaxablate.")} - {"__version__"}
        wrong += [f"{module(path)} imports {other}" for other in sorted(imported - ALLOWED[room] - {room})]
    assert not wrong


def test_files_do_not_import_each_other_in_circles():
    files = {module(path): path for path in FILES}

    def imported(name: str) -> list[str]:
        """Files of the package that one imports; `from a.b import c` is a.b.c where that is a file, and a.b where not.
        config may look into the registries of what it names, which import it."""
        full = (full.removeprefix("jaxablate.") for full in imports(files[name]) if full.startswith("jaxablate."))
        others = {other if other in files else other.rpartition(".")[0] for other in full}
        lazy = {"gating", "registry"} if name.startswith("config") else set()
        return sorted(others & files.keys() - {name, ""} - lazy)

    circles, done = [], set()

    def walk(name: str, above: list[str]) -> None:
        if name in above:
            circles.append(" -> ".join([*above[above.index(name):], name]))
        elif name not in done:
            for other in imported(name):
                walk(other, [*above, name])
            done.add(name)

    for name in sorted(files):
        walk(name, [])
    assert not circles


def test_the_table_has_no_line_without_a_room():
    assert set(ALLOWED) <= {path.stem for path in PACKAGE.iterdir()}


def test_no_file_imports_what_is_banned_or_another_files():
    wrong = [f"{path.relative_to(ROOT)}: {name}" for path in FILES + SCRIPTS for name in imports(path)
             if name.startswith(BANNED)]
    wrong += [f"{path.relative_to(ROOT)}: {name}" for path in FILES for name in imports(path)
              if OWNED.get(name.split(".")[0], module(path)) != module(path)]
    assert not wrong


def test_every_package_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = itertools.chain(project["dependencies"], *project["optional-dependencies"].values())
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
