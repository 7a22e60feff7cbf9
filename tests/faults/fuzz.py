"""Runs cases of a module of property-based cases one after another in one process, and tells what breaks.

Such a module has ``cases(seed, n)``, which yields the same cases for the same seed, and ``check(case)``,
``check(case, folder)`` or ``run(case, folder)``, which returns None or what broke: `faults.flags`, `faults.loaders`,
`faults.two_processes`.

``python -m faults.fuzz MODULE SEED FIRST LAST`` prints a line before each case and one for each that breaks, so that
whoever reads them knows which case a hang or a crash belongs to.
"""

import contextlib
import importlib
import inspect
import itertools
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

MOST_MEMORY = 2 << 30
START, BROKEN = "case ", "broken "


def main(arguments: Sequence[str]) -> int:
    """Checks the cases FIRST .. LAST - 1 of a seed."""
    name, seed, first, last = arguments[0], *map(int, arguments[1:])
    module = importlib.import_module(f"faults.{name}")
    told = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is checked may print as it likes
    check = module.check if hasattr(module, "check") else module.run
    takes_folder = "folder" in inspect.signature(check).parameters
    for index, case in zip(itertools.count(first), itertools.islice(module.cases(seed, last), first, last)):
        print(f"{START}{index}", file=told, flush=True)
        folder = Path(tempfile.mkdtemp(prefix="case-", dir=os.getcwd()))
        _forget_peak()
        try:
            broken = check(case, folder) if takes_folder else check(case)
        except BaseException:  # a check that lets an exception through has found one
            broken = traceback.format_exc(limit=-4)
        if broken is None and _peak() > MOST_MEMORY:
            broken = f"memory: {_peak() / (1 << 30):.1f} GiB"
        shutil.rmtree(folder, ignore_errors=True)
        if broken is not None:
            print(BROKEN + json.dumps([index, str(broken)[-2000:], f"{case!r:.1000}"]), file=told, flush=True)
    return 0


def _forget_peak() -> None:
    """The peak of memory counts from now on, where Linux lets a process say so."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak() -> int:
    with open("/proc/self/status") as file:
        line = next((line for line in file if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
