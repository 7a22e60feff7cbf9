"""The campaigns of `torture`: each case is drawn from (seed, campaign, index) alone, runs in a folder of its own, and
ends in a `Verdict`.

* kills: a command gets one or two rounds of signals at random moments, then runs to its end; all that it made is
  compared bit for bit with an undisturbed run's.
* disk: the same on a small or suddenly full tmpfs, one without inodes, or under a limit on the size of files; then it
  runs to its end where there is room.
* damage: a file of a working directory is damaged, and a command that reads it is run.
"""

import contextlib
import dataclasses
import fnmatch
import json
import math
import os
import random
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from faults import compare
from faults.damage import Damage, damaged
from faults.launcher import Launcher, Moment, Outcome
from faults.works import WORKS, Bench, Fault, Reference, Work, aimed, fault_of

GIB = 1 << 30
MOST_MEMORY = 2 * GIB
"""What a command may take where an input of less than 1 MB is wrong."""
STOPPED = (0, 130, 143)
"""Exit codes after SIGINT or SIGTERM: saved or finished in time; stopped, with a line."""


@dataclasses.dataclass
class Verdict:
    """What came of a case."""

    fault: Fault | None = None
    detail: str = ""
    """What was done, for people."""
    seconds: float = 0.0
    peak: int = 0
    happened: int = 1
    """Disturbances that came in time: before the command had ended, a limit that was met."""

    def add(self, outcome: Outcome) -> Outcome:
        """Counts a command's time and memory."""
        self.seconds += outcome.seconds
        self.peak = max(self.peak, outcome.peak)
        return outcome


class Stage:
    """Where a case is played: its folder, its commands, what is found.

    Args:
      folder: empty, or not there yet.
    """

    def __init__(self, bench: Bench, launcher: Launcher, folder: Path, rng: random.Random):
        self.bench, self.launcher, self.folder, self.rng = bench, launcher, folder, rng
        self.verdict = Verdict(happened=0)
        self._said: list[str] = []

    def say(self, what: str) -> None:
        """Adds to what was done."""
        self._said.append(what)
        self.verdict.detail = "; ".join(self._said)

    def run(self, line: Sequence[str], codes: Sequence[int], about: str, *, moments: Sequence[Moment] = (),
            **options: object) -> Outcome:
        """Runs a command and judges how it ended; the first fault of a case is the one that is kept."""
        outcome = self.verdict.add(self.launcher.run(line, self.folder, moments=moments, **options))
        self.verdict.happened += outcome.happened
        self.find(fault_of(outcome, codes, about))
        return outcome

    def find(self, fault: Fault | None) -> None:
        """Keeps a fault, unless one was found before that is at least as grave."""
        order = ["lost", "wrong", "hang", "traceback", "memory", "other"]
        kept = self.verdict.fault
        if fault is not None and (kept is None or order.index(fault.kind) < order.index(kept.kind)):
            self.verdict.fault = fault

    def complete(self, work: Work, reference: Reference) -> None:
        """Runs a work to its end, and compares all it made."""
        outcome = self.verdict.add(self.launcher.run(work.line, self.folder))
        fault = fault_of(outcome, (0,), "the same command again")
        if outcome.code != 0 and not outcome.hung:
            lines = outcome.err.strip().splitlines()
            fault = Fault("lost", f"the same command again: exit code {outcome.code}; {' | '.join(lines[-3:])[-800:]}")
        self.find(fault)
        if outcome.code == 0:
            self.compare(reference)

    def differences(self, reference: Reference, matters: Callable[[str], bool] = lambda name: True) -> list[str]:
        """Where the folder and an undisturbed one differ."""
        try:
            return compare.differences(compare.contents(self.folder), reference.contents, matters)
        except (OSError, ValueError, KeyError) as error:
            return [f"what was made cannot be read: {error!r:.500}"]

    def compare(self, reference: Reference, matters: Callable[[str], bool] = lambda name: True) -> None:
        """Holds the folder against an undisturbed one."""
        if different := self.differences(reference, matters):
            self.find(Fault("wrong", f"{len(different)} differ: " + "; ".join(different[:5])))
        if left := compare.left_over(self.folder):
            self.find(Fault("other", f"left over: {', '.join(left[:5])}"))


# Kills ---------------------------------------------------------------------------------------------------------------

_TURN = ("train", "classifier", "train", "data", "train", "score", "train", "sae", "classifier", "circuit", "train",
         "neurons", "classifier", "data", "train", "score-classifier", "train", "sae", "classifier", "circuit")


def kill(stage: Stage, index: int, works: Sequence[str]) -> None:
    """Signals at random moments, once or twice."""
    work = WORKS[works[index % len(works)]]
    reference, rng = stage.bench.reference(work.name), stage.rng
    stage.bench.copy(work.start, stage.folder)
    for _ in range(rng.choice((1, 1, 1, 2))):
        moments, fresh = signals(work, reference, rng)
        stage.say(f"{work.name}: {', '.join(map(str, moments))}{' (new interpreter)' if fresh else ''}")
        last = {moment.signal for moment in moments if moment.signal is not None}
        codes = (*STOPPED, *(-number for number in last))
        about = f"after {', '.join(map(str, moments))}"
        outcome = stage.run(work.line, codes, about, moments=moments, fresh=fresh)
        # Without a line it may end at a second signal, and while the interpreter ends, all work being done.
        if outcome.code in (-signal.SIGTERM, -signal.SIGINT) and len(moments) == 1 and stage.differences(reference):
            stage.find(Fault("other", f"{about}: ended by the signal without a line"))
    stage.complete(work, reference)


def signals(work: Work, reference: Reference, rng: random.Random) -> tuple[list[Moment], bool]:
    """Signals of one round and their moments, and whether a new interpreter gets them: SIGKILL then, as one of Python's
    own start-up ends with its traceback at Ctrl-C."""
    fresh = rng.random() < 0.05
    kinds = rng.choice(((signal.SIGKILL,), (signal.SIGKILL,), (signal.SIGKILL,), (signal.SIGTERM,), (signal.SIGINT,),
                        (signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGINT),
                        (signal.SIGTERM, signal.SIGINT), (signal.SIGTERM, signal.SIGKILL)))
    if fresh:
        return [Moment(after=rng.uniform(0, 3 + reference.seconds), signal=signal.SIGKILL)], True
    first = dataclasses.replace(aimed(work, reference, rng, sharp=rng.random() < 0.35), signal=kinds[0])
    return [first, *(Moment(after=rng.choice((0.0, rng.uniform(0, 0.3))), signal=kind) for kind in kinds[1:])], False


# Disks ---------------------------------------------------------------------------------------------------------------


def disk(stage: Stage, index: int, works: Sequence[str], *, mounting: bool) -> None:
    """A disk that is too small, or becomes full, or a limit on the size of files; then enough room."""
    work = WORKS[works[index % len(works)]]
    reference, rng = stage.bench.reference(work.name), stage.rng
    how = rng.choice(("small", "small", "filled", "inodes", "limited", "limited")) if mounting else "limited"
    if how == "limited":
        stage.bench.copy(work.start, stage.folder)
        most = int(math.exp(rng.uniform(math.log(32), math.log(reference.largest))))
        stage.say(f"{work.name}: files of at most {most} bytes")
        outcome = stage.run(work.line, (0, 2), stage.verdict.detail, file_size=most)
        stage.verdict.happened = int(outcome.code != 0)
        stage.complete(work, reference)
        return
    with _tmpfs(stage.folder):
        stage.bench.copy(work.start, stage.folder)
        used = _used(stage.folder)
        moments, environment = [], {}
        if rng.random() < 0.5:
            (stage.folder / "tmp").mkdir()
            environment["TMPDIR"] = str(stage.folder / "tmp")
        if how == "small":
            size = used + 4096 * rng.randint(1, 2 + reference.added // 4096)
            _remount(stage.folder, f"size={size}")
            stage.say(f"{work.name}: {size - used} bytes free")
        elif how == "inodes":
            free = int(math.exp(rng.uniform(0, math.log(400))))
            _remount(stage.folder, f"nr_inodes={_inodes(stage.folder) + free}")
            stage.say(f"{work.name}: {free} more files and folders")
        else:
            filler = Moment(fill=str(stage.folder / "filler"), leave=4096 * rng.choice((0, 0, 1, 2, 4, 10)))
            when = aimed(work, reference, rng, sharp=rng.random() < 0.35)
            moments = [dataclasses.replace(when, fill=filler.fill, leave=filler.leave)]
            stage.say(f"{work.name}: {moments[0]}")
        outcome = stage.run(work.line, (0, 2), stage.verdict.detail, moments=moments, environment=environment)
        stage.verdict.happened = int(outcome.code != 0)
        (stage.folder / "filler").unlink(missing_ok=True)
        shutil.rmtree(stage.folder / "tmp", ignore_errors=True)
        _remount(stage.folder, f"size={ROOM},nr_inodes=0")
        stage.complete(work, reference)


ROOM = 1 << 28
"""Bytes of a tmpfs that is large enough."""


def may_mount(folder: Path) -> bool:
    """Whether this process may mount a tmpfs."""
    place = folder / "mountable"
    place.mkdir(exist_ok=True)
    try:
        with _tmpfs(place):
            _remount(place, "size=65536")
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextlib.contextmanager
def _tmpfs(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    options = ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)]
    subprocess.run(options, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False, capture_output=True)


def _remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)


def _used(folder: Path) -> int:
    state = os.statvfs(folder)
    return (state.f_blocks - state.f_bfree) * state.f_frsize


def _inodes(folder: Path) -> int:
    state = os.statvfs(folder)
    return state.f_files - state.f_ffree


# Damage --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """Files of a prepared folder, and commands that read them; FILE stands for the damaged one, NUMBER for that in its
    name."""

    start: str
    files: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    exact: str | None = None
    """A work that the first line is: where it ends well, it must have made the same as an undisturbed one."""
    must: bool = False
    """The command must end well, since older files serve."""
    weight: int = 1


_SCORE = ("jaxablate", "score", "--workdir", "run", "--suites")
_NEURONS = ("jaxablate", "neurons", "--workdir", "run")
READINGS = (
    Reading(start="train.stopped", files=("run/checkpoints/20/*",), lines=(WORKS["train"].line,), exact="train",
            must=True, weight=5),
    Reading(start="train.stopped", files=("run/*.json*", "run/.lock", "run/tokenizer/*", "data/*"),
            lines=(WORKS["train"].line,), exact="train", weight=5),
    Reading(start="train.stopped", files=("run/*.json*", "run/tokenizer/*", "run/checkpoints/*"), weight=2,
            lines=((*_SCORE, "weights"),)),
    Reading(start="train", files=("data/*",), weight=1, lines=(
        ("jaxablate.data", "info", "FILE"), WORKS["score"].line)),
    Reading(start="data", files=("stories/*.json", "stories/*.tokens"), weight=2, lines=(WORKS["data"].line,),
            exact="data"),
    Reading(start="data", files=("stories/*.txt",), lines=(WORKS["data"].line,)),
    Reading(start="classifier.stopped", files=("run/checkpoints/28/*",), lines=(WORKS["classifier"].line,),
            exact="classifier", must=True, weight=3),
    Reading(start="classifier.stopped", files=("run/*.json*", "run/tokenizer/*", "trees/*"),
            lines=(WORKS["classifier"].line,), exact="classifier", weight=3),
    Reading(start="classifier.stopped", files=("run/*.json*", "run/tokenizer/*", "trees/*"),
            lines=(WORKS["score-classifier"].line,)),
    Reading(start="score", files=("run/results.json",), weight=3,
            lines=(("jaxablate", "compare", "run", "--out", "table"), (*_SCORE, "weights"))),
    Reading(start="circuit", files=("run/circuits/*.json",), weight=2,
            lines=(("jaxablate", "circuit", "--workdir", "run", "--prompts", "4", "--load", "FILE"),)),
    Reading(start="sae", files=("run/autoencoders/clean*",), weight=2,
            lines=((*_SCORE, "sae"), (*WORKS["sae"].line,))),
    Reading(start="sae.stopped", files=("run/autoencoders/jobs/*",), lines=(WORKS["sae"].line,), weight=2),
    Reading(start="neurons", files=("run/neurons/graphs/index.json", "run/neurons/graphs/*.json"), weight=4, lines=(
        (*_NEURONS, "--search", " the"), (*_NEURONS, "--show", "0.NUMBER"), (*_NEURONS, "--search", " gave"))),
    Reading(start="neurons.stopped", files=("run/neurons/graphs/*",), lines=(WORKS["neurons"].line,)),
)


def damage(stage: Stage, index: int, readings: Sequence[Reading]) -> None:
    """A damaged file, and a command that reads it."""
    rng = stage.rng
    reading = rng.choices(readings, [r.weight for r in readings])[0]
    stage.bench.copy(reading.start, stage.folder)
    names = sorted(name for path in stage.folder.rglob("*") if path.is_file()
                   and any(fnmatch.fnmatch(name := str(path.relative_to(stage.folder)), p) for p in reading.files))
    if not names:
        raise RuntimeError(f"{reading.start} has no {' or '.join(reading.files)}")
    name = rng.choice(names)
    before = (stage.folder / name).read_bytes()
    done = damaged(name, before, rng)
    done.apply(stage.folder)
    number = "".join(filter(str.isdecimal, Path(name).stem)) or "0"
    line = tuple(part.replace("FILE", name).replace("NUMBER", number) for part in rng.choice(reading.lines))
    stage.say(f"{reading.start}/{done}; {' '.join(line)}")
    stage.verdict.happened = 1
    codes = (0,) if reading.must else (0, 2)
    outcome = stage.run(line, codes, "with the damaged file")
    if reading.must and outcome.code == 2:
        stage.find(Fault("lost", f"older checkpoints serve, but: {outcome.err.strip()[-600:]}"))
    if outcome.peak > MOST_MEMORY:
        stage.find(Fault("memory", f"{outcome.peak / GIB:.1f} GiB"))
    if outcome.code == 0 and reading.exact is not None:
        _compare_damaged(stage, done, before, outcome, stage.bench.reference(reading.exact))


def _compare_damaged(stage: Stage, done: Damage, before: bytes, outcome: Outcome, reference: Reference) -> None:
    """Nothing may differ that has a checksum or comes from elsewhere.

    Plain text has no checksum, so a log or a record may keep what the damage made of a line or a value, but no more
    than that may be lost without a word.
    """
    stage.compare(reference, lambda name: name not in (done.file, f"{done.file}.damaged"))
    told = Path(done.file).name in outcome.err + outcome.out
    if told or done.file not in reference.contents:
        return
    got = compare.contents(stage.folder).get(done.file, "").splitlines()
    if done.file.endswith(".jsonl"):
        after = [] if done.content is None else done.content.splitlines()
        whole = [line for line in before.splitlines() if line in after]
        kept = set(map(_place, whole))
        lost = [line for line in reference.contents[done.file].splitlines() if _place(line) in kept and line not in got]
        if lost:
            stage.find(Fault("wrong", f"{len(lost)} whole lines of {done.file} were lost without a word: {lost[0]}"))
    elif done.file == "run/run.json" and _keys(done.content) != _keys(before):
        stage.find(Fault("wrong", f"{done.file} was damaged and made anew without a word"))
    elif done.file.startswith(("run/", "data/", "stories/")) and done.file != "run/run.json" and (
            got != reference.contents[done.file].splitlines()):
        stage.find(Fault("wrong", f"{done.file} stayed damaged without a word"))


def _place(line: str | bytes) -> tuple[int, str]:
    values = json.loads(line)
    return values["step"], values["split"]


def _keys(content: bytes | None) -> object:
    try:
        return sorted(json.loads(content or b""))
    except (ValueError, RecursionError, TypeError):
        return None


def stop(bench: Bench, launcher: Launcher, name: str) -> None:
    """Makes the folder ``<name>.stopped``: the work as far as it was when it was stopped half way."""
    work = WORKS[name]
    folder = bench.folder / "prepared" / f"{name}.stopped"
    if name in ("train", "classifier"):
        bench.copy(name, folder)
        steps = sorted((int(p.name) for p in (folder / "run/checkpoints").iterdir()), reverse=True)
        shutil.rmtree(folder / "run/checkpoints" / str(steps[0]))
        return
    if name == "neurons":
        bench.copy(name, folder)
        (folder / "run/neurons/graphs/index.json").unlink()
        return
    bench.copy(work.start, folder)
    appears = "run/autoencoders/jobs/*/state.safetensors"
    outcome = launcher.run(work.line, folder, moments=[Moment(appears=appears, signal=signal.SIGTERM)])
    if outcome.code not in STOPPED or outcome.happened != 1 or not list(folder.glob(appears)):
        raise RuntimeError(f"{name} could not be stopped half way: {outcome}")


def case_rng(seed: int, campaign: str, index: int) -> random.Random:
    """The random numbers of one case."""
    return random.Random(f"{seed}:{campaign}:{index}")


def turn(works: Sequence[str] | None) -> tuple[str, ...]:
    """Works in the order in which cases take them."""
    return _TURN if works is None else tuple(works)


def needed(works: Sequence[str], damages: bool) -> tuple[list[str], list[str]]:
    """Works to prepare in an order in which each follows that it starts from, and those to stop half way."""
    names = dict.fromkeys(w for name in works for w in (WORKS[name].start, name) if w != "empty")
    stopped: list[str] = []
    if damages:
        for reading in readings_of(works):
            base, _, half = reading.start.partition(".")
            stopped += [base] if half and base not in stopped else []
    return list(names), stopped


def readings_of(works: Sequence[str]) -> list[Reading]:
    """Readings of folders that the works make."""
    return [r for r in READINGS if r.start.partition(".")[0] in works]
