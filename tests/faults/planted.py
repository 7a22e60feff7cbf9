"""Faults that are known, for the tests of the campaigns: a program that fails as it is told, and such cases."""

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence


def main(arguments: Sequence[str]) -> int:
    """Fails in the way that the first argument names."""
    what = arguments[0]
    if what == "traceback":
        raise KeyError("planted")
    if what == "error":
        print(f"error: {' '.join(arguments[1:])}", file=sys.stderr)
        return 2
    if what == "write":
        try:
            for number in range(int(arguments[1])):
                with open("written", "ab") as file:
                    file.write(b"x" * 1000)
                print(number, flush=True)
                time.sleep(0.01)
        except OSError as error:
            return main(["error", error.strerror or ""])
        except KeyboardInterrupt:
            return 130
    if what == "sleep":
        time.sleep(60)
    if what == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def cases(seed: int, n: int) -> Iterator[int]:
    """The numbers from 0 on, whatever the seed."""
    del seed
    yield from range(n)


def check(case: int) -> str | None:
    """Finds something broken at 2, breaks at 3, ends the process at 5, and hangs at 7."""
    print("what is checked may print")
    if case == 3:
        raise RuntimeError("planted")
    if case == 5:
        os._exit(9)
    if case == 7:
        time.sleep(60)
    return "memory: 3 GiB, planted" if case == 2 else None
