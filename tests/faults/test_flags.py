"""Command lines that went wrong once, and some that are drawn."""

import pytest

from faults.flags import cases, check

TRAIN = ("train", "--config", "{config}", "--workdir", "w")
KEPT = (
    (*TRAIN, "--model.d-model", "99999999999"),  # ten thousand million steps of Python, for a message
    (*TRAIN, "--model.d-model", "3000000000", "--model.n-heads", "3"),
    (*TRAIN, "--model.d-model", "1073741824", "--model.d-mlp", "2147483647"),
    (*TRAIN, "--model.n-layers", "99999999999"),
    ("train", "--config", "{classifier-config}", "--workdir", "w", "--model.n-layers", "4294967296"),
    (*TRAIN, "--model.vocab-size", "2147483648"),  # OverflowError
    (*TRAIN, "--model.context-length", "2147483648"),
    (*TRAIN, "--train.batch-size", "2147483640"),
    (*TRAIN, "--train.seed", "9" * 5000),
    ("train", "--config", "a" * 256, "--workdir", "w"),  # OSError: File name too long
    (*TRAIN[:-1], "a" * 256),
    (*TRAIN[:-1], ""),  # trained into the current folder
    (*TRAIN[:-1], "a\\b"),
    (*TRAIN[:-1], "\udcff"),
    (*TRAIN[:-1], "{loop}"),
    (*TRAIN[:-1], "/proc/self/x"),
    ("compare", "{run}", "--out", "a" * 256),
    ("compare", "\udcff"),
    ("score", "--workdir", "{run}", "--checkpoint", "9" * 5000),  # ValueError: more than 4,300 digits
    ("match", "--workdir", "{run}", "--baseline", "{loop}"),
    ("circuit", "--workdir", "{run}", "--prompt-file", "a" * 256),
)


@pytest.mark.parametrize("case", KEPT, ids=[" ".join(case)[:60].encode("ascii", "backslashreplace").decode()
                                            for case in KEPT])
def test_a_line_that_went_wrong_once(case):
    assert check(case, seconds=10) is None


def test_lines_that_are_drawn():
    """``make torture`` draws more; ``python -m faults.flags SEED N`` in tests/ repeats any."""
    broken = {case: what for case in cases(0, 60) if (what := check(case)) is not None}
    assert not broken
