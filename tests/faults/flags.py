"""Command lines drawn from a seed: valid, extreme and hostile values for every flag of every command.

A line ends with exit code 0, or with 2 and something on standard error; a refused one leaves no file. Nothing is
computed: training is stopped where it would begin, and the runs that other commands look at have no checkpoint.
"""

import contextlib
import dataclasses
import functools
import importlib
import io
import itertools
import json
import random
import signal
import tempfile
import traceback
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import jax

from faults.hostile import NAMES
from jaxablate.commands import base
from jaxablate.commands import train as train_command
from jaxablate.commands.main import COMMANDS, main
from jaxablate.config import ClassificationConfig, Config, DataConfig, SentimentDataConfig, to_dict
from jaxablate.data.__main__ import main as data_main
from jaxablate.errors import ConfigError

SECONDS = 60
"""A line that takes longer hangs."""
INTEGERS = ("0", "1", "-1", "2", "3", "7", "16", "1000", "1024", "1025", "65536", "2147483647", "2147483648",
            "4294967296", "9223372036854775807", "9223372036854775808", "99999999999", "1" + "0" * 20, "-2147483648",
            "-1" + "0" * 23, "1e3", "0x10", "1_000", "٣", "+5", "-0", "1.5", "nan", "", " 1", "9" * 5000, "None",
            "True", "a")
FLOATS = ("0", "1", "0.5", "-1", "1e-300", "1e300", "1e400", "-1e400", "1e-400", "nan", "inf", "-inf", "0.0003", "2",
          "100", "1_0.5", "", "None", "a", "9" * 400)
PATHS = ("", " ", ".", "..", "/", "/dev/null", "/proc/self", "/proc/self/fd/0", "a" * 256, "a" * 224, "x/" * 3000,
         "a\\b", "\udcff", "a\udcffb", "{loop}", "{missing}", "{run}", "{classifier}", "{config}", "{config}/x", "~",
         "$HOME")
DATA_COMMANDS = {"prepare": DataConfig, "sentiment": SentimentDataConfig, "info": None}
Flag = tuple[str, Any]
"""Name with its dashes, empty for an argument without one, and type."""


def cases(seed: int, n: int) -> Iterator[tuple[str, ...]]:
    """`n` command lines, the same ones for the same seed; words in braces are paths that `check` fills in."""
    rng = random.Random(seed)
    for _ in range(n):
        yield tuple(_line(rng))


def check(argv: Sequence[str], *, seconds: float = SECONDS) -> str | None:
    """Runs one command line in this process, in a folder of its own; None, or what broke."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        inputs = _inputs(Path(name) / "inputs")
        here = Path(name) / "here"
        here.mkdir()
        before = sorted(Path(name).rglob("*"))
        stack.enter_context(contextlib.chdir(here))
        stack.enter_context(mock.patch("jaxablate.training.loop.train", _stopped))
        for command, name in itertools.product(("sweep", "quickstart"), ("do", "do_all")):
            stack.enter_context(mock.patch(f"jaxablate.commands.{command}.{name}", _refused))
        filled = [functools.reduce(lambda text, item: text.replace(*item), inputs.items(), part) for part in argv]
        code, out, err = _run(filled, seconds)
        jax.config.update("jax_enable_x64", False)
        if isinstance(code, str):
            return code
        if code not in (0, 2):
            return f"exit code {code!r}: {err[-300:]}"
        if "Traceback" in err + out:
            return f"a traceback: {err[-2000:]}"
        if code == 2 and (not err.strip() or (err.startswith("error:") and len(err.strip().splitlines()) != 1)):
            return f"not one line on standard error: {err[:500]!r}"
        left = [str(path) for path in sorted(Path(name).rglob("*")) if path not in before]
        if left and (code == 2 or argv[:1] == ("train",)):
            return f"files are left: {left[:5]}"
    return None


class _Hang(BaseException):
    """A line has taken too long."""


def _run(argv: Sequence[str], seconds: float) -> tuple[Any, str, str]:
    """Exit code, or a text that says what went wrong; standard output and error."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, write_through=True)
               for errors in ("strict", "backslashreplace")]  # as Python opens them

    def late(_number: int, _frame: object) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
            code = data_main(list(argv[1:])) if argv[:1] == ["data"] else main(argv)
    except SystemExit as stop:
        code = 0 if stop.code is None else stop.code
    except _Hang:
        code = f"no end in {seconds:g} s: {traceback.format_exc()[-2000:]}"
    except BaseException:
        code = traceback.format_exc()[-4000:]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    out, err = (stream.buffer.getvalue().decode("utf-8", "backslashreplace") for stream in streams)
    return code, out, err


def _stopped(config: Any, workdir: Path, **_: Any) -> Any:
    """What `train` refuses before it reads data; then it says that it was interrupted."""
    from jaxablate.runs.workdir import require_x64
    from jaxablate.sharding import make_mesh
    from jaxablate.training.loop import check_memory, check_shares, make_program

    require_x64(config)
    mesh = make_mesh(config.mesh, None)
    check_shares(config, mesh)
    if isinstance(config, Config) and config.model.n_layers <= 2:  # what is traced takes its time
        check_memory(make_program(config, mesh, config.train.steps), config)
    return types.SimpleNamespace(signalled=True)


def _refused(*_: Any) -> Any:
    """In the place of what starts runs."""
    raise ConfigError("nothing is begun here")


CONFIG = """
from jaxablate.config import *

def get_config():
    return {}
"""
_LANGUAGE = """Config(model=ModelConfig(vocab_size=320, context_length=16, d_model=16, n_layers=1, n_heads=2),
                  data=DataConfig(source="embedded", tokenizer="corpus"),
                  train=TrainConfig(steps=3, batch_size=8, sequence_length=16))"""
_CLASSIFIER = "ClassificationConfig(model=ClassifierConfig(d_model=16, n_heads=2))"


def _inputs(folder: Path) -> dict[str, str]:
    """Word in braces -> path."""
    folder.mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "tiny.py").write_text(CONFIG.format(_LANGUAGE))
    (folder / "classifier.py").write_text(CONFIG.format(_CLASSIFIER))
    for name, config in (("run", Config()), ("classifier", ClassificationConfig())):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(to_dict(config)))
        (folder / name / "run.json").write_text("{}")
    return {"{loop}": str(folder / "loop"), "{missing}": str(folder / "missing" / "x"), "{run}": str(folder / "run"),
            "{classifier}": str(folder / "classifier"), "{config}": str(folder / "tiny.py"),
            "{classifier-config}": str(folder / "classifier.py")}


def _line(rng: random.Random) -> list[str]:
    command = rng.choice([*["train"] * 6, *COMMANDS, "data", "data"])
    if rng.random() < 0.02:
        return rng.choice([[], ["--help"], ["--version"], [_misspelt(command, rng)], [command, "--help"], ["-x"], [""]])
    if command == "train":
        kind, config = rng.choice([(Config, "{config}"), (ClassificationConfig, "{classifier-config}")])
        line = ["train", "--config", config, "--workdir", "w"]
        flags = [*_flags(train_command.TrainSettings, leave=("settings",)), *_flags(kind)]
    elif command == "data":
        name = rng.choice(sorted(DATA_COMMANDS))
        if DATA_COMMANDS[name] is None:
            return ["data", name, *[_value(Path, rng) for _ in range(rng.randrange(3))]]
        flags, line = _flags(DATA_COMMANDS[name]), ["data", name]
    else:
        kind = importlib.import_module(f"jaxablate.commands.{command}").parse.args[0]
        flags, line = _flags(kind), [command]
        required = {"--workdir": "{classifier}" if command == "explain" else "{run}", "--baseline": "{missing}",
                    "--text": "a good film"}
        for flag, _ in flags:
            if flag in required:
                line += [flag, required[flag]]
        line += {"compare": ["{run}"], "sweep": ["paper_table"]}.get(command, [])
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 3))):
        line += _setting(rng.choice(flags), rng)
    if command == "data":  # the embedded corpus would be made, TinyStories or a treebank be fetched
        wanted = {"--source": "text", "--train-path": "{missing}"} if line[1] == "prepare" else {"--path": "{missing}"}
        for flag, value in wanted.items():
            line = [*_without(line, flag), flag, value]
    return line


def _without(line: list[str], flag: str) -> list[str]:
    kept, skip = [], False
    for part in line:
        if part == flag:
            skip = True
        elif not skip:
            kept.append(part)
        else:
            skip = False
    return kept


def _flags(kind: Any, prefix: str = "", leave: Sequence[str] = ()) -> list[Flag]:
    """The flags of a settings class and, with dotted names, of those inside it."""
    hints, found = typing.get_type_hints(kind), []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if field.name in leave:
            continue
        if dataclasses.is_dataclass(hint):
            inner = "" if issubclass(kind, base.Settings) else f"{prefix}{field.name}."
            found += _flags(hint, inner)
        else:
            found.append((f"--{prefix}{field.name}".replace("_", "-"), hint))
    return found


def _setting(flag: Flag, rng: random.Random) -> list[str]:
    """A flag with a value, or with what a user mistypes."""
    name, hint = flag
    odd = rng.random()
    if odd < 0.02:
        return [_misspelt(name, rng), _value(hint, rng)]
    if odd < 0.04:
        return [name]
    if odd < 0.06:
        return [f"{name}={_value(hint, rng)}"]
    if hint is bool:
        dotted, _, last = name.removeprefix("--").rpartition(".")
        return [rng.choice((name, f"--{dotted}{'.' if dotted else ''}no-{last}"))]
    values = [_value(hint, rng) for _ in range(rng.choice((0, 1, 1, 2, 3)) if _is_tuple(hint) else 1)]
    return [name, *values]


def _is_tuple(hint: Any) -> bool:
    return any(typing.get_origin(part) is tuple for part in (hint, *typing.get_args(hint)))


def _value(hint: Any, rng: random.Random) -> str:
    """A value of a type, one at its limits, or one of another type."""
    if rng.random() < 0.05:
        return rng.choice((*INTEGERS, *FLOATS, *PATHS, *NAMES))
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return rng.choice((*map(str, args), *map(str, args), "x"))
    if args:
        return _value(rng.choice([part for part in args if part is not Ellipsis]), rng)
    choices = {int: INTEGERS, float: FLOATS, bool: ("True", "False"), type(None): ("None",)}
    if hint in choices:
        return rng.choice(choices[hint])
    return rng.choice(PATHS if hint is Path or rng.random() < 0.5 else NAMES)


def _misspelt(word: str, rng: random.Random) -> str:
    at = rng.randrange(len(word) + 1)
    return word[:at] + rng.choice("-x_.=é ") + word[at + rng.randrange(2):]


if __name__ == "__main__":  # python -m faults.flags SEED N, in tests/
    import sys

    for number, case in enumerate(cases(int(sys.argv[1]), int(sys.argv[2]))):
        if (broken := check(case)) is not None:
            print(number, json.dumps(case), broken, sep="\n", flush=True)
