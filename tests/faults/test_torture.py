"""The campaigns of `torture` in short, and that they find what is planted."""

import json
import os
import random
import shutil
import signal

import pytest

from faults import campaigns, compare, torture
from faults.campaigns import Stage
from faults.launcher import Launcher, Moment, Outcome
from faults.works import Bench, Fault, fault_of


@pytest.fixture(scope="module")
def light():
    """A launcher of planted programs, which need no JAX."""
    with Launcher({}, preloaded=("faults.planted", "faults.fuzz")) as launcher:
        yield launcher


def planted(launcher, folder, *arguments, **options):
    return launcher.run(("faults.planted", *arguments), folder, **options)


def outcome(**values):
    quiet = {"code": 0, "out": "", "err": "", "seconds": 1.0, "cpu": 1.0, "peak": 0, "hung": False, "happened": 0}
    return Outcome(**quiet | values)


def test_a_command_is_run_with_its_streams_and_memory(light, tmp_path):
    got = planted(light, tmp_path, "write", "3")
    assert (got.code, got.out, got.err, got.hung) == (0, "0\n1\n2\n", "", False)
    assert 0 < got.seconds < 10 and got.peak > 1 << 20
    assert (tmp_path / "written").stat().st_size == 3000


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_signals_come_at_their_moment(light, tmp_path, number, code):
    got = planted(light, tmp_path, "write", "1000", moments=[Moment(after=0.1, signal=number)])
    assert (got.code, got.happened) == (code, 1)
    assert 3 <= len(got.out.splitlines()) < 1000
    late = planted(light, tmp_path, "write", "1", moments=[Moment(after=5.0, signal=number)])
    assert (late.code, late.happened) == (0, 0)


def test_a_signal_follows_a_file(light, tmp_path):
    moment = Moment(appears="wri*", after=0.05, signal=signal.SIGKILL)
    got = planted(light, tmp_path, "write", "1000", moments=[moment])
    assert got.code == -9 and 0 < len(got.out.splitlines()) < 100


def test_limits_of_size_and_time(light, tmp_path):
    got = planted(light, tmp_path, "write", "50", file_size=10_500)
    assert (got.code, got.err) == (2, "error: File too large\n")
    assert (tmp_path / "written").stat().st_size == 10_500
    got = planted(light, tmp_path, "sleep", limit=0.3)
    assert got.hung and fault_of(got, (0,), "").kind == "hang"
    (tmp_path / "written").unlink()
    got = planted(light, tmp_path, "write", "50", limit=0.3, idle=True)  # what prints does not hang
    assert not got.hung and got.code == 0


def test_what_is_no_good_end_is_a_fault(light, tmp_path):
    assert fault_of(planted(light, tmp_path, "traceback"), (0, 2), "").kind == "traceback"
    assert fault_of(planted(light, tmp_path, "crash"), (0, 2), "").kind == "traceback"
    assert fault_of(planted(light, tmp_path, "error", "full"), (0, 2), "") is None
    assert fault_of(outcome(code=2, err="error: a\nerror: b\n"), (2,), "").kind == "other"
    assert fault_of(outcome(code=2, err="usage\n"), (2,), "").kind == "other"
    assert fault_of(outcome(code=1), (0, 2), "").kind == "other"
    assert fault_of(outcome(err="Exception ignored in: x"), (0,), "").kind == "traceback"


def test_cases_of_a_module_go_on_behind_one_that_ends_or_hangs(light, tmp_path, monkeypatch):
    monkeypatch.setitem(torture.MODULES, "flags", "planted")
    monkeypatch.setitem(torture.PATIENCE, "flags", 1.0)
    record = torture._fuzz(torture.Task("flags", 1, 8), light, 0, tmp_path)
    assert [(f["index"], f["kind"]) for f in record.faults] == [
        (2, "memory"), (3, "traceback"), (5, "traceback"), (7, "hang")]
    assert (record.count, record.happened) == (8, 8)


def test_contents_leave_out_times_alone(tmp_path):
    for name, seconds, loss in (("a", 1.5, 2.0), ("b", 2.5, 2.0), ("c", 1.5, 3.0)):
        folder = tmp_path / name
        (folder / "tensorboard").mkdir(parents=True)
        (folder / "tensorboard/events").write_text(name)
        (folder / "run.json").write_text(json.dumps({"date": name, "x": [{"wall_seconds": seconds, "loss": loss}]}))
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "steps_per_second": seconds, "loss": loss}) + "\n")
        (folder / "report.html").write_text(f"<p>2026-01-01T00:00:0{int(seconds)}+00:00, {seconds} s, loss {loss}</p>")
    a, b, c = (compare.contents(tmp_path / name) for name in "abc")
    assert a == b and set(a) == {"metrics.jsonl", "report.html", "run.json"}
    lines = compare.differences(c, a)
    assert [line.partition(",")[0] for line in lines] == ["metrics.jsonl", "report.html", "run.json"]
    assert compare.differences(c, a, lambda name: name == "run.json") == lines[2:]
    assert lines[2] == "run.json, line 4: '\"loss\": 3.0' for '\"loss\": 2.0'"
    (tmp_path / "b/.run.json.12-ab.partial").write_text("")
    assert compare.left_over(tmp_path / "b") == [".run.json.12-ab.partial"]


def test_a_log_is_continued(tmp_path):
    log = torture.Log(tmp_path / "log", seed=3)
    log.add(torture.Record("kills", 3, 0, 1, happened=1, seconds=2.0, peak=1 << 30))
    log.add(torture.Record("flags", 3, 0, 400, happened=400, faults=[
        {"index": 7, "kind": "traceback", "what": "a\nb", "detail": "--x"}]))
    with (tmp_path / "log").open("a") as file:
        file.write('{"campaign": "ki')
    again = torture.Log(tmp_path / "log", seed=3)
    assert again.done == {("kills", 0, 1), ("flags", 0, 400)} and not torture.Log(tmp_path / "log", seed=4).records
    table = torture.report(again.records, torture._options(["--seed", "3"]), 60)
    assert table.startswith("`make torture ARGS='--seed 3 --workers ")
    short = torture._options(["--seed", "3", "--count", "0.1", "--campaigns", "kills", "--works", "train"])
    assert "--count 0.1 --campaigns kills --works train'`" in torture.report(again.records, short, 60)
    assert "| kills | 1 | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 1.00 GiB | 0.0 min |" in table
    assert "| flags | 400 | 400 | 0 | 0 | 0 | 1 | 0 | 0 |" in table and "* `flags:7` tracebacks: a b (--x)" in table


def test_cases_depend_on_their_number_alone():
    options = torture._options(["--seed", "3", "--count", "0.1"])
    tasks = torture._tasks(options)
    assert {t.campaign: sum(u.count for u in tasks if u.campaign == t.campaign) for t in tasks} == {
        name: round(n / 10) for name, n in torture.COUNTS.items()}
    one, other = (campaigns.case_rng(3, "kills", 5).random() for _ in range(2))
    assert one == other != campaigns.case_rng(3, "kills", 6).random()


def test_the_table_takes_its_place_in_a_page(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- torture: begin -->\nold\n<!-- torture: end -->\nafter\n")
    torture._insert(page, "new")
    assert page.read_text() == "before\n<!-- torture: begin -->\nnew\n<!-- torture: end -->\nafter\n"


WORKS = ("train", "data")


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """A launcher of the program; a language model's run that nobody disturbed, whole and stopped half way, and data."""
    bench = Bench(tmp_path_factory.mktemp("torture"))
    bench.write_sources()
    # Programs are compiled as in all other tests.
    with Launcher(bench.environment() | {"XLA_FLAGS": os.environ["XLA_FLAGS"]}) as launcher:
        for work in WORKS:
            bench.prepare(work, launcher)
        campaigns.stop(bench, launcher, "train")
        yield bench, launcher


def play(bench, campaign, index, **options):
    stage = Stage(*bench, bench[0].folder / "cases" / f"{campaign}-{index}", campaigns.case_rng(0, campaign, index))
    getattr(campaigns, campaign)(stage, index, **options)
    shutil.rmtree(stage.folder, ignore_errors=True)
    return stage.verdict


@pytest.mark.system
@pytest.mark.parametrize("index", range(2))
def test_killed_commands_end_with_the_same_bits(bench, index):
    verdict = play(bench, "kill", index, works=WORKS)
    assert verdict.fault is None, verdict


@pytest.mark.system
@pytest.mark.parametrize("index", range(2))
def test_commands_on_a_full_disk_go_on_where_there_is_room(bench, index):
    verdict = play(bench, "disk", index, works=WORKS, mounting=campaigns.may_mount(bench[0].folder))
    assert verdict.fault is None, verdict


@pytest.mark.system
@pytest.mark.parametrize(("work", "index"), [("train", 3), ("data", 0), ("data", 1)])
def test_damaged_files_are_refused_or_passed_over(bench, work, index):
    verdict = play(bench, "damage", index, readings=campaigns.readings_of((work,)))
    assert verdict.fault is None, verdict


@pytest.mark.system
def test_a_run_that_differs_is_found(bench):
    rng = random.Random(0)
    stage = Stage(*bench, bench[0].folder / "cases" / "differs", rng)
    bench[0].copy("train", stage.folder)
    log = stage.folder / "run/metrics.jsonl"
    log.write_text(log.read_text().replace('"step": 9', '"step": 8'))
    stage.compare(bench[0].reference("train"))
    assert stage.verdict.fault.kind == "wrong" and "run/metrics.jsonl, line" in stage.verdict.fault.what
    stage.find(Fault("other", "less grave"))
    assert stage.verdict.fault.kind == "wrong"
    chunk = next(p for p in sorted(stage.folder.glob("run/checkpoints/24/params/d/*")) if p.stat().st_size > 100)
    chunk.write_bytes(bytes(chunk.stat().st_size))
    stage.compare(bench[0].reference("train"))
    assert stage.verdict.fault.kind == "wrong"
