"""Settings of the whole test run, made before JAX is imported anywhere: eight CPU devices, one compilation cache.

Subprocesses of the tests inherit them.
"""

import atexit
import os
import shutil
import tempfile

# Sharding is tested on eight devices of one machine. They share few cores, so no operation may start its own threads.
_XLA_FLAGS = {"--xla_force_host_platform_device_count": "8", "--xla_cpu_multi_thread_eigen": "false"}


def _set_environment() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    missing = [f"{name}={value}" for name, value in _XLA_FLAGS.items() if name not in flags]
    os.environ["XLA_FLAGS"] = " ".join([flags, *missing]).strip()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    # [B, T, D] + [D] is what a bug looks like as well; it has to be written [None, None].
    os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _share_compilation_cache() -> None:
    """One temporary cache for all workers and subprocesses of this run; never a stale one of an earlier run."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = tempfile.mkdtemp(prefix="jaxablate-test-cache-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


_set_environment()
_share_compilation_cache()
