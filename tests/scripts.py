"""The programs train.py and eval.py as modules, for tests that call their functions."""

import importlib.util
import pathlib
import sys
import types

ROOT = pathlib.Path(__file__).parent.parent


def load_script(name: str) -> types.ModuleType:
    """``load_script("eval")`` is eval.py."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", ROOT / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
