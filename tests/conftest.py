"""Settings of the whole test run, made before JAX is imported anywhere: eight CPU devices, one compilation cache.

Subprocesses of the tests inherit them.
"""

import atexit
import gc
import importlib.metadata
import os
import pathlib
import shutil
import tempfile

import pytest
from helpers import annotations

# Sharding is tested on eight devices of one machine. They share few cores, so no operation may start its own threads.
# The models are tiny, so compiling them is most of the work: half of it is saved by not optimising the machine code,
# and a fifth of the rest by not splitting it into parts that are compiled side by side.
_XLA_FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    "--xla_cpu_multi_thread_eigen": "false",
    "--xla_backend_optimization_level": "0",
    "--xla_cpu_parallel_codegen_split_count": "1",
}
# XLA's older CPU emitters compile these models in three quarters of the time; users have the newer ones, which
# XLA_FLAGS=--xla_cpu_use_fusion_emitters=true tests. XLA ends the process at a flag that it does not know.
if importlib.metadata.version("jaxlib").startswith("0.10."):
    _XLA_FLAGS["--xla_cpu_use_fusion_emitters"] = "false"


def _set_environment() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [f"{name}={value}" for name, value in _XLA_FLAGS.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _share_compilation_cache() -> None:
    """One temporary cache for all workers and subprocesses of this run; never a stale one of an earlier run."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="jaxablate-test-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def _collect_garbage_rarely() -> None:
    """Tracing makes many objects and few cycles: looking for them took a fifth of its time."""
    gc.set_threshold(50_000, 20, 50)


_collect_garbage_rarely()
_set_environment()
_share_compilation_cache()
annotations.install()
unchecked_types = annotations.unchecked_types


_MOST_MAPPINGS = 20_000


@pytest.fixture(autouse=True, scope="module")
def _forget_compiled_programs(request: pytest.FixtureRequest):
    """Frees what modules have compiled, and with it the memory mappings of its machine code, where these are many.

    Linux allows a process 65,530 of them. The whole suite comes near that in one worker, and where LLVM gets none,
    compiling fails or ends the process. Programs that another module needs too come back from the shared cache. What
    a module patches may be part of what it has compiled, so nothing stays of one that does.
    """
    yield
    patched = any("monkeypatch" in item.fixturenames for item in request.session.items if item.path == request.path)
    mappings = pathlib.Path("/proc/self/maps")
    if not patched and mappings.exists() and mappings.read_bytes().count(b"\n") < _MOST_MAPPINGS:
        return
    import jax  # after the environment is set, and only by workers

    jax.clear_caches()
    gc.collect()


def _copied_run(kind: str):
    """Fixture: a copy of a kind's tiny trained run (`helpers.runs`) that one test module may write into."""

    @pytest.fixture(scope="module", name=f"{kind}_run")
    def run(tmp_path_factory):
        from helpers import runs

        original = runs.shared_run(kind, runs.shared_folder(tmp_path_factory.getbasetemp()))
        return runs.copy_run(original, tmp_path_factory.mktemp("runs") / kind)

    return run


language_run = _copied_run("language")
long_run = _copied_run("long")
baseline_run = _copied_run("baseline")
classifier_run = _copied_run("classifier")


collect_ignore_glob = ["make_golden_*.py"]
"""Scripts that import other programs, which need not be installed."""

_SLOW = (
    "test_parity_sat", "test_stacking", "test_families", "test_transformations", "test_circuit_families",
    "test_suite_circuits", "test_known_circuit", "test_train_classifier", "test_eval_cli", "test_circuit_attribution",
    "test_acdc", "test_parity_huggingface", "test_sae_command", "test_circuit_command", "test_suite_units",
    "test_resume", "test_pruning", "test_sharding", "test_gating", "test_own_decoder", "test_parity_acdc",
    "test_sweep", "test_circuit_problem", "test_platforms", "test_sites", "test_objectives_safr",
    "test_neurons_command", "test_sae", "test_training_checkpoint", "test_triton", "test_classifier",
    "test_suite_texts", "test_suites_superposition", "test_decoder", "test_sae_sites",
)
"""Files that compile many programs, the longest first; ``-m "not slow"`` leaves them out."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of the files above, beside those that are marked where they stand, and puts them first.

    Workers take whole files: where a long one came last, all others would wait for it.
    """
    for item in items:
        if item.path.stem in _SLOW:
            item.add_marker("slow")
    items.sort(key=lambda item: _SLOW.index(item.path.stem) if item.path.stem in _SLOW else len(_SLOW))


_ROOT = pathlib.Path(__file__).parent.parent
_PARITY_FILES = {"sat_file": "sat_*.npz", "topk_file": "topk.npz", "safr_file": "safr_*.npz",
                 "acdc_file": "acdc_*.npz", "sae_file": "sae_*.npz"}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a key of the table above runs over every such file.

    They are in JAXABLATE_FIXTURES and tests/golden; golden files are parts of the full ones and are left out where
    those are there.
    """
    for argument in _PARITY_FILES.keys() & set(metafunc.fixturenames):
        metafunc.parametrize(argument, _parity_files(_PARITY_FILES[argument]), scope="module")


def _parity_files(pattern: str) -> list:
    folder = os.environ.get("JAXABLATE_FIXTURES")
    paths = sorted(pathlib.Path(folder).glob(pattern)) if folder else []
    found = {path.name: pytest.param(path, id=path.stem) for path in paths}
    reason = f"JAXABLATE_FIXTURES={folder} has no {pattern}" if folder else "JAXABLATE_FIXTURES is not set"
    nothing = pytest.mark.skip(reason=reason)
    golden = [path for path in sorted((_ROOT / "tests" / "golden").glob(pattern)) if path.name not in found]
    full = list(found.values()) or [pytest.param(None, id="absent", marks=nothing)]
    return [pytest.param(path, id=f"golden-{path.stem}") for path in golden] + full
