"""Memory in large pages, with which a CPU trains faster.

XLA asks the C library for the temporaries of a program at every call, and gives them back after it. Beyond 32 MB these
are fresh pages of the kernel each time, cleared 4 KiB at once: a third of a small model's step. glibc asks for pages of
2 MiB in a process that is started with GLIBC_TUNABLES=glibc.malloc.hugetlb=1; a process that runs cannot do so.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE, WANTED = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
_LEAST_GLIBC = (2, 35)
_KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def lacking(variables: Mapping[str, str]) -> dict[str, str]:
    """What a process with these variables lacks for large pages; nothing where it has them, or this machine does not
    give them to those who ask."""
    given = variables.get(VARIABLE, "")
    if "glibc.malloc.hugetlb=" in given or not _on_request():
        return {}
    return {VARIABLE: f"{given}:{WANTED}" if given else WANTED}


def hint(variables: Mapping[str, str]) -> str:
    """A line that says what to set; empty where nothing is lacking."""
    return "".join(f"hint: memory in large pages makes training on a CPU faster: export {name}={value}"
                   for name, value in lacking(variables).items())


def _on_request() -> bool:
    """Whether the kernel gives large pages to those who ask, not to all or to nobody, and glibc can."""
    if sys.platform != "linux":
        return False
    try:
        library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        found = tuple(int(part) for part in version.split(".")[:2])
        return library == "glibc" and found >= _LEAST_GLIBC and "[madvise]" in _KERNEL.read_text()
    except (OSError, ValueError):
        return False
