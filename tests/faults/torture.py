"""Long campaigns of faults: ``make torture``, which is ``python -m faults.torture`` in the folder ``tests``.

    make torture ARGS='--count 0.01 --seed 7'           # a hundredth of every campaign
    make torture ARGS='--campaigns kills disk --count 20'
    make torture ARGS='--seed 7 --only kills:17'        # one case again

Cases are drawn from the seed, the campaign and their number alone. Each that ends is a line of the log; a call with the
same log and seed goes on where it ended. The table at the end is made of the log.
"""

import argparse
import contextlib
import dataclasses
import datetime
import json
import multiprocessing
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from faults import campaigns, fuzz
from faults.launcher import LIMIT, TESTS, Launcher
from faults.works import KINDS, WORKS, Bench

COUNTS = {"kills": 210, "disk": 270, "damage": 510, "flags": 20_000, "loaders": 5_000, "processes": 50}
"""Cases of each campaign; some of kills and disk come too late to disturb anything."""
MODULES = {"flags": "flags", "loaders": "loaders", "processes": "two_processes"}
"""Campaigns of `faults.fuzz` and their modules."""
CHUNKS = {"flags": 400, "loaders": 250, "processes": 1}
PATIENCE = {"flags": LIMIT + 10, "loaders": LIMIT + 10, "processes": 1500.0}
"""Seconds for one case of such a campaign, where its own limits do not end it."""
MARKS = ("<!-- torture: begin -->", "<!-- torture: end -->")


@dataclasses.dataclass(frozen=True)
class Task:
    """What a worker is given: cases of a campaign, or something to prepare."""

    campaign: str
    first: int = 0
    count: int = 1
    name: str = ""
    """What to prepare."""

    @property
    def key(self) -> tuple[str, int, int]:
        return self.campaign, self.first, self.count


@dataclasses.dataclass
class Record:
    """A line of the log: what came of a task."""

    campaign: str
    seed: int
    first: int
    count: int
    happened: int = 0
    seconds: float = 0.0
    peak: int = 0
    detail: str = ""
    faults: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    """{"index", "kind", "what", "detail"} of each case that broke."""

    @property
    def key(self) -> tuple[str, int, int]:
        return self.campaign, self.first, self.count


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs campaigns; the exit code is 1 where a fault was found."""
    options = _options(arguments)
    work = Path(tempfile.mkdtemp(prefix="torture-", dir=options.folder))
    log = Log(Path(options.log), options.seed)
    began = time.monotonic()
    try:
        _run(options, Bench(work), log)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from its log", flush=True)
        return 130
    finally:
        if options.keep:
            print(f"kept {work}")
        else:
            _remove(work)
    table = report(log.records, options, time.monotonic() - began)
    print("\n" + table)
    if options.into:
        _insert(Path(options.into), table)
    return int(any(record.faults for record in log.records))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=None, help="decides all cases; drawn and printed by default")
    parser.add_argument("--count", type=float, default=1.0, help="cases of each campaign; below 1, and 1 itself, as a "
                        "share of " + ", ".join(f"{n:,} {name}" for name, n in COUNTS.items()))
    parser.add_argument("--campaigns", nargs="+", choices=list(COUNTS), default=list(COUNTS))
    parser.add_argument("--works", nargs="+", choices=list(WORKS), help="commands of kills, disk and damage; all by "
                        "default")
    parser.add_argument("--only", nargs="+", metavar="CAMPAIGN:NUMBER", default=[], help="these cases alone")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument("--log", default=None, help="file of JSON lines, continued where it is there; by default "
                        "torture-SEED.jsonl in the root of the repository")
    parser.add_argument("--folder", default=None, help="where work is done; by default the system's temporary folder")
    parser.add_argument("--keep", action="store_true", help="keep the folder of the work and those of broken cases")
    parser.add_argument("--into", metavar="FILE.md", help="also put the table between its marks there")
    options = parser.parse_args(arguments)
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    for only in options.only:
        if not re.fullmatch(rf"({'|'.join(COUNTS)}):\d+", only):
            parser.error(f"--only {only}: give CAMPAIGN:NUMBER, for example kills:17")
    if options.log is None:
        # One case again is no part of the campaign.
        options.log = os.devnull if options.only else str(TESTS.parent / f"torture-{options.seed}.jsonl")
    return options


class Log:
    """Records of a seed, kept in a file of JSON lines."""

    def __init__(self, path: Path, seed: int):
        self.records: list[Record] = []
        if path.is_file():
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError, TypeError):  # half a line of a killed writer
                    record = Record(**json.loads(line))
                    self.records += [record] if record.seed == seed else []
        self.done = {record.key for record in self.records}
        self._path = path

    def add(self, record: Record) -> None:
        """Appends a record."""
        self.records.append(record)
        self.done.add(record.key)
        with self._path.open("a") as file:
            file.write(json.dumps(dataclasses.asdict(record)) + "\n")


def _run(options: argparse.Namespace, bench: Bench, log: Log) -> None:
    tasks = [task for task in _tasks(options) if task.key not in log.done]
    works = campaigns.turn(options.works)
    damages = any(task.campaign == "damage" for task in tasks)
    played = works if damages else [works[t.first % len(works)] for t in tasks if t.campaign not in MODULES]
    prepared, stopped = campaigns.needed(played, damages)
    total, since = len(tasks), time.monotonic()
    print(f"seed {options.seed}, log {options.log}, {sum(t.count for t in tasks):,} cases, folder {bench.folder}",
          flush=True)
    bench.write_sources()
    with _workers(options, bench, min(options.workers, max(total, 1))) as workers:
        first = [name for name in prepared if WORKS[name].start == "empty"]
        second = [name for name in prepared if WORKS[name].start != "empty"]
        for names, campaign in ((first, "prepare"), (second, "prepare"), (stopped, "stop")):
            for _, answer in _spread([Task(campaign, name=name) for name in names], workers):
                if isinstance(answer, str):
                    raise SystemExit(answer)
        if prepared:
            print(f"prepared {', '.join(prepared)} in {time.monotonic() - since:.0f} s", flush=True)
        for number, (task, answer) in enumerate(_spread(tasks, workers), 1):
            if isinstance(answer, str):
                answer = Record(task.campaign, options.seed, task.first, task.count, faults=[
                    {"index": task.first, "kind": "other", "what": f"the campaign itself failed: {answer}",
                     "detail": ""}])
            log.add(answer)
            for fault in answer.faults:
                print(f"{task.campaign}:{fault['index']} {KINDS[fault['kind']]}: {fault['what'][:1500]}\n"
                      f"    {fault['detail']}\n    again: {_again(options, task.campaign, fault['index'])}", flush=True)
            if number % max(total // 20, 1) == 0:
                print(f"{number} of {total} tasks after {time.monotonic() - since:.0f} s", flush=True)


def _tasks(options: argparse.Namespace) -> list[Task]:
    """All tasks, campaigns mixed so that what waits and what computes run side by side."""
    if options.only:
        return [Task(name, int(number)) for name, number in (only.split(":") for only in options.only)]
    tasks = []
    for name in options.campaigns:
        count = round(options.count * COUNTS[name]) if options.count <= 1 else round(options.count)
        size = CHUNKS.get(name, 1)
        tasks += [(start / count, Task(name, start, min(size, count - start))) for start in range(0, count, size)]
    return [task for _, task in sorted(tasks, key=lambda pair: pair[0])]


def _again(options: argparse.Namespace, campaign: str, index: int) -> str:
    works = f" --works {' '.join(options.works)}" if options.works else ""
    return f"make torture ARGS='--seed {options.seed}{works} --only {campaign}:{index}'"


# Workers -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _workers(options: argparse.Namespace, bench: Bench, count: int) -> Iterator[list[Connection]]:
    """Processes that play tasks; they end with the block."""
    context, ends, processes = multiprocessing.get_context("spawn"), [], []
    for number in range(count):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, bench.folder, options, number), daemon=True)
        process.start()
        theirs.close()
        ends.append(ours)
        processes.append(process)
    try:
        yield ends
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.join(timeout=15)
            if process.is_alive():
                process.terminate()


def _spread(tasks: Sequence[Task], workers: Sequence[Connection]) -> Iterator[tuple[Task, Any]]:
    """Gives each worker one task after another, and yields what came of them, a text where a worker failed."""
    left, idle, busy = list(tasks)[::-1], list(workers), dict[Connection, Task]()
    while left or busy:
        while left and idle:
            end = idle.pop()
            busy[end] = left.pop()
            end.send(busy[end])
        for end in wait(list(busy)):
            assert isinstance(end, Connection)
            try:
                answer = end.recv()
            except EOFError:
                raise SystemExit(f"a worker ended at {busy[end]}") from None
            task = busy.pop(end)
            idle.append(end)
            yield task, answer


def _serve(tasks: Connection, folder: Path, options: argparse.Namespace, number: int) -> None:
    """A worker: tasks in, records out, until the other side is gone."""
    bench = Bench(folder)
    mounting = campaigns.may_mount(_made(folder / f"worker-{number}"))
    with Launcher(bench.environment()) as launcher, contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            task = tasks.recv()
            try:
                answer = _play(task, bench, launcher, options, number, mounting=mounting)
            except Exception as error:
                answer = f"{task}: {type(error).__name__}: {error}"
            tasks.send(answer)


def _play(task: Task, bench: Bench, launcher: Launcher, options: argparse.Namespace, number: int, *,
          mounting: bool) -> Any:
    if task.campaign == "prepare":
        return bench.prepare(task.name, launcher)
    if task.campaign == "stop":
        return campaigns.stop(bench, launcher, task.name)
    if task.campaign in MODULES:
        place = f"{task.campaign}-worker-{number}" if task.campaign == "processes" else f"{task.campaign}-{task.first}"
        return _fuzz(task, launcher, options.seed, _made(bench.folder / "cases" / place))
    works, index = campaigns.turn(options.works), task.first
    folder = bench.folder / "cases" / f"{task.campaign}-{index}"
    stage = campaigns.Stage(bench, launcher, folder, campaigns.case_rng(options.seed, task.campaign, index))
    record = Record(task.campaign, options.seed, index, 1)
    if task.campaign == "kills":
        campaigns.kill(stage, index, works)
    elif task.campaign == "disk":
        campaigns.disk(stage, index, works, mounting=mounting)
    else:
        campaigns.damage(stage, index, campaigns.readings_of(works))
    verdict = stage.verdict
    record.happened, record.seconds, record.peak = verdict.happened, round(verdict.seconds, 2), verdict.peak
    record.detail = verdict.detail
    if verdict.fault is not None:
        record.faults.append({"index": index, **dataclasses.asdict(verdict.fault), "detail": verdict.detail})
    if verdict.fault is None or not options.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return record


def _fuzz(task: Task, launcher: Launcher, seed: int, folder: Path) -> Record:
    """Cases of a module; one that hangs or ends the process is a fault, and the rest goes on behind it."""
    record = Record(task.campaign, seed, task.first, task.count, happened=task.count)
    first, last = task.first, task.first + task.count
    while first < last:
        line = ("faults.fuzz", MODULES[task.campaign], str(seed), str(first), str(last))
        outcome = launcher.run(line, folder, limit=PATIENCE[task.campaign], idle=True)
        record.seconds, record.peak = round(record.seconds + outcome.seconds, 2), max(record.peak, outcome.peak)
        lines = outcome.out.splitlines()
        for text in (line.removeprefix(fuzz.BROKEN) for line in lines if line.startswith(fuzz.BROKEN)):
            index, what, detail = json.loads(text)
            record.faults.append({"index": index, "kind": kind_of(what), "what": what, "detail": detail})
        started = [int(line.removeprefix(fuzz.START)) for line in lines if line.startswith(fuzz.START)]
        if outcome.code == 0:
            break
        reached = started[-1] if started else first
        what = "is still running" if outcome.hung else f"ended the process with {outcome.code}"
        record.faults.append({"index": reached, "kind": "hang" if outcome.hung else "traceback",
                              "what": f"{what}; {outcome.err.strip()[-1500:]}", "detail": ""})
        if not started:  # the module itself does not load
            break
        first = reached + 1
    return record


def kind_of(what: str) -> str:
    """Kind of a fault from what a check says of it."""
    for kind, pattern in (
        ("hang", r"\bhang|still running|no end in|did not end|^_TooLong"),
        ("memory", r"^memory|^took \d+ MB|MemoryError"),
        ("wrong", r"wrong data|wrong number|\bdiffer"),
        ("lost", r"^left alone"),
        ("traceback", r"[Tt]raceback|\w+(Error|Exception|Panic|Exit)\b"),
    ):
        if re.search(pattern, what):
            return kind
    return "other"


# Report --------------------------------------------------------------------------------------------------------------


def report(records: Sequence[Record], options: argparse.Namespace, seconds: float) -> str:
    """The table of a log, as Markdown."""
    head = ["campaign", "cases", "disturbed in time", *KINDS.values(), "peak memory", "time"]
    rows = []
    for name in [name for name in COUNTS if any(r.campaign == name for r in records)]:
        of = [record for record in records if record.campaign == name]
        faults = [fault["kind"] for record in of for fault in record.faults]
        rows.append([name, f"{sum(r.count for r in of):,}", f"{sum(r.happened for r in of):,}",
                     *(str(faults.count(kind)) for kind in KINDS), f"{max(r.peak for r in of) / campaigns.GIB:.2f} GiB",
                     f"{sum(r.seconds for r in of) / 60:.1f} min"])
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]
    date = datetime.datetime.now(datetime.UTC).date()
    chosen = [f"--seed {options.seed}", f"--workers {options.workers}"]
    chosen += [f"--count {options.count:g}"] if options.count != 1 else []
    chosen += [f"--campaigns {' '.join(options.campaigns)}"] if options.campaigns != list(COUNTS) else []
    chosen += [f"--works {' '.join(options.works)}"] if options.works else []
    command = f"make torture ARGS='{' '.join(chosen)}'"
    about = (f"`{command}`, revision {_revision()}, {date}, {_machine()}, Python {platform.python_version()}: "
             f"{seconds / 60:.0f} min in the last call; times of campaigns are summed over {options.workers} workers.")
    broken = [f"* `{r.campaign}:{f['index']}` {KINDS[f['kind']]}: {_one_line(f['what'])} ({_one_line(f['detail'])})"
              for r in records for f in r.faults]
    return "\n".join([about, "", *lines, *(["", *broken] if broken else [])])


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]


def _machine() -> str:
    about = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", about.read_text()) if about.exists() else None
    return f"{os.cpu_count()} x {model[1] if model else platform.machine()}"


def _revision() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=TESTS, capture_output=True,
                          text=True, check=False)
    return done.stdout.strip() or "unknown"


def _insert(path: Path, table: str) -> None:
    before, _, rest = path.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    path.write_text(f"{before}{MARKS[0]}\n{table}\n{MARKS[1]}{after}")


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _remove(folder: Path) -> None:
    """Removes the folder of the work, and first what is mounted in it."""
    if os.path.exists("/proc/mounts"):
        for line in Path("/proc/mounts").read_text().splitlines():
            if (place := line.split()[1]).startswith(f"{folder}/"):
                subprocess.run(["umount", "-l", place], check=False, capture_output=True)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
