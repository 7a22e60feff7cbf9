"""What a program makes of an error: one line and an exit code."""

import functools
import gc
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import types

import pytest

from jaxablate.errors import DataError
from jaxablate.exits import guarded


def raising(error):
    def run():
        raise error

    return run


@pytest.mark.parametrize(("error", "code", "line"), [
    (DataError("two\nlines of a message"), 2, "error: two lines of a message"),
    (OSError(28, "No space left on device", "a/b"), 2, "error: a/b: No space left on device"),
    (MemoryError("Unable to allocate 745. GiB"), 2, "error: out of memory (Unable to allocate 745. GiB); use a machine "
     "with more, or less data at once"),
    (KeyboardInterrupt(), 130, "stopped by Ctrl-C"), (BrokenPipeError(), 141, ""),
])
def test_an_error_of_the_user_or_the_machine_is_one_line(capsys, error, code, line):
    assert guarded(raising(error)) == code
    assert capsys.readouterr().err.strip() == line


def test_sigterm_is_one_line_and_what_took_it_before_takes_it_again(capsys):
    before = signal.getsignal(signal.SIGTERM)
    assert guarded(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_that_comes_while_garbage_is_collected_is_not_lost(capsys, number, code):
    """Python prints what is raised there, and goes on."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def collected(phase, info):
        gc.callbacks.remove(collected)
        os.kill(os.getpid(), number)

    def run():
        gc.callbacks.append(collected)
        gc.collect()
        time.sleep(20)

    try:
        assert guarded(run) == code
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.startswith("stopped by ")


def test_a_second_signal_while_python_tells_of_the_first_is_not_lost(capsys):
    def collected(phase, info):
        gc.callbacks.remove(collected)
        os.kill(os.getpid(), signal.SIGTERM)

    def run():
        hook = sys.unraisablehook

        def outer(what):
            if not told:
                told.append(what)
                os.kill(os.getpid(), signal.SIGTERM)
            hook(what)

        told = []
        sys.unraisablehook = outer
        gc.callbacks.append(collected)
        gc.collect()
        time.sleep(20)

    before = sys.unraisablehook
    try:
        assert guarded(run) == 143
    finally:
        sys.unraisablehook = before
    assert capsys.readouterr().err == "stopped by SIGTERM\n"


@pytest.fixture
def ctrl_c():
    """Python's own answer to Ctrl-C, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupted_once_taken(number, released):
    """A condition whose lock is taken as a signal comes, so that Python looks for it before the block is entered."""
    condition = threading.Condition()
    condition._lock = types.SimpleNamespace(__enter__=functools.partial(os.kill, os.getpid(), number),
                                            __exit__=lambda *_: released.append(number))
    return condition


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_leaves_no_lock_taken(ctrl_c, number, code):
    """Ctrl-C as `data prepare` gave texts to its threads left them waiting for a lock, and the program for them."""
    released = []

    def run():
        with interrupted_once_taken(number, released):
            pass
        time.sleep(20)

    assert guarded(run) == code
    assert released == [number]


def asks_again():
    """Waits as who looks after something else meanwhile."""
    late = time.monotonic() + 20
    while time.monotonic() < late:
        threading.Event().wait(0.05)


@pytest.mark.parametrize("wait", [lambda: threading.Event().wait(20), lambda: queue.Queue().get(timeout=20),
                                  asks_again])
def test_ctrl_c_ends_what_waits_for_threads(ctrl_c, wait):
    threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
    start = time.monotonic()
    assert guarded(wait) == 130
    assert time.monotonic() - start < 10


def test_a_signal_that_is_sent_again_comes_once_to_who_has_taken_over(ctrl_c):
    """It came twice, and a second Ctrl-C ends a training in the middle of a step."""
    came = []

    def run():
        with interrupted_once_taken(signal.SIGINT, []):
            pass
        before = signal.signal(signal.SIGINT, lambda *_: came.append(signal.signal(signal.SIGINT, before)))
        time.sleep(0.2)

    assert guarded(run) == 0
    assert len(came) == 1


def test_a_fault_of_the_program_is_not_hidden():
    assert guarded(lambda: None) == 0
    with pytest.raises(ZeroDivisionError):
        guarded(lambda: 1 / 0)


def test_ctrl_c_while_the_interpreter_waits_for_threads_ends_it_without_a_traceback():
    program = """
import signal, threading, time
from jaxablate.exits import guarded
signal.signal(signal.SIGINT, signal.default_int_handler)  # where it is not taken, as by nohup, there is nothing to end
def run():
    threading.Thread(target=time.sleep, args=[20]).start()
guarded(run, ends=True)
print("ended", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ended\n"
    time.sleep(0.2)  # for the interpreter to come from there to its waiting
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=10)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (-signal.SIGINT, "")
