"""Sweeps: the cells of a grid, files that are not right, runs that are killed, and what is shown of all."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults.launcher import Launcher, Moment
from helpers.commands import Ended, error_of, in_this_process, run_command
from helpers.runs import copy_run, language_config

from jaxablate.commands import sweep as command
from jaxablate.commands.sweep import CellTask, load_sweep
from jaxablate.config import Config
from jaxablate.errors import ConfigError
from jaxablate.exits import FOLLOWED
from jaxablate.runs.checkpoint import stored_progress
from jaxablate.runs.workdir import read_config
from jaxablate.sweep import Cell, Sweep
from jaxablate.terminal import PlainConsole
from jaxablate.training.loop import is_finished

SWEEP = """
from pathlib import Path

from helpers.runs import language_config
from jaxablate.sweep import Sweep


def get_sweep():
    config = language_config(Path({data!r}))
    return Sweep(config=config, grid={{"model.ablation": ("local", "none")}}, seeds=(0, 1),
                 suites=("perplexity", "weights", "gates"))
"""


def names(**fields):
    return [cell.name for cell in Sweep(config="x", **fields).cells(Config())]


def test_cells_are_every_combination_with_every_seed_but_those_excluded():
    ks = {k: {"model.k_attention": k, "model.k_neurons": k} for k in (4, 2)}
    grid = {"model.ablation": ["local", "none"], "k": ks, "train.steps": [10]}
    sweep = Sweep(config="x", grid=grid, seeds=[0, 3], exclude=[{"model.ablation": "none", "k": [2]}],
                  settings={"train.batch_size": 4})
    cells = sweep.cells(Config())
    assert [cell.name for cell in cells] == [
        "local-k-4-steps-10/seed-0", "local-k-4-steps-10/seed-3", "local-k-2-steps-10/seed-0",
        "local-k-2-steps-10/seed-3", "none-k-4-steps-10/seed-0", "none-k-4-steps-10/seed-3"]
    second = cells[3].config
    assert (second.model.ablation, second.model.k_attention, second.model.k_neurons) == ("local", 2, 2)
    assert (second.train.seed, second.train.steps, second.train.batch_size) == (3, 10, 4)
    assert names() == ["seed-0"]
    assert names(grid={"model": {"ablation": ["local"], "k_neurons": [[1] * 8, 3]}}) == [
        "local-k_neurons-1-1-1-1-1-1-1-1/seed-0", "local-k_neurons-3/seed-0"]


@pytest.mark.parametrize(("fields", "message"), [
    ({"grid": {"model.k_neuron": [1]}}, "unknown setting 'model.k_neuron'; did you mean 'model.k_neurons'"),
    ({"grid": {"model.ablation": ["locl"]}}, "locl/seed-0: ModelConfig.ablation='locl' must be one of"),
    ({"grid": {"model.k_neurons": [4, 9999]}}, "k_neurons-9999/seed-0: k_neurons=9999 must be below the 512 neurons"),
    ({"grid": {"model.k_neurons": [1, 1]}}, "grid 'model.k_neurons' has a value twice"),
    ({"grid": {"model.k_neurons": []}}, "has no values"),
    ({"grid": {"model.k_neurons": 3}}, "must be a list of values, or settings by label"),
    ({"grid": {"k": {"a": 3}}}, "must be a list of values, or settings by label"),
    ({"grid": {"data.cache_dir": ["a/b"]}}, "names no folder; give settings by labels"),
    ({"grid": {"data.cache_dir": ["a", "b"]}}, "a/seed-0 and b/seed-0 are the same run"),
    ({"grid": {"train.seed": [1]}}, "grid 'train.seed' sets train.seed; give seeds"),
    ({"grid": {"a": {"x": {"train.steps": 1}}, "train.steps": [2]}}, "train.steps is set by two axes of the grid"),
    ({"grid": {"train.steps": [1]}, "settings": {"train": {"steps": 2}}}, "settings has train.steps, which the grid"),
    ({"grid": {1: [1]}}, "grid has the key 1; names must be text"),
    ({"settings": {"train.stps": 2}}, "settings has the unknown setting 'train.stps'; did you mean 'train.steps'?"),
    ({"settings": {"train.steps": "many"}}, "TrainConfig.steps='many' must be of type int"),
    ({"settings": [1]}, "settings=[1] must be a table"),
    ({"exclude": [{"k": 1}]}, "exclude names 'k', which is no axis of the grid"),
    ({"grid": {"train.steps": [1]}, "exclude": [{"train.steps": 2}]}, "exclude names '2', which is no label of"),
    ({"grid": {"train.steps": [1]}, "exclude": [{"train.steps": 1}]}, "every run is excluded"),
    ({"exclude": [{}]}, "exclude has an entry without any axis"),
    ({"exclude": {}}, "exclude={} must be a list"),
    ({"seeds": 3}, "seeds=3 must be a list"), ({"seeds": []}, "at least one"), ({"seeds": [1, 1]}, "a seed twice"),
    ({"seeds": ["1"]}, "must be whole numbers"), ({"suites": [3]}, "suites=[3] must be names"),
    ({"config": 3}, "config=3 must be the name"),
])
def test_a_sweep_that_is_not_right_says_what(fields, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        Sweep(**{"config": "x"} | fields).cells(Config())
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(("name", "content", "message"), [
    ("s.toml", 'config = "quickstart"\n[grid', "cannot be read as TOML"),
    ("s.toml", b"\xff", "cannot be read as TOML"),
    ("s.toml", "seeds = [0]", "it has no config"),
    ("s.toml", 'config = "quickstart"\nsedes = [0]', "unknown key 'sedes'; did you mean 'seeds'?"),
    ("s.toml", 'config = "quikstart"', "config"),
    ("s.toml", 'config = "quickstart"\nsuites = ["perplexty"]', "did you mean 'perplexity'?"),
    ("s.toml", 'config = "quickstart"\nsuites = ["classification"]', "suite 'classification' fits no run of the sweep"),
    ("s.toml", 'config = "quickstart"\ngrid."model.k_neurons" = [999]', "k_neurons=999 must be below"),
    ("s.py", "x = 1", "has no attribute 'get_sweep'"),
    ("s.py", "def get_sweep(): return 3", "must return a jaxablate.sweep.Sweep, not a int"),
    ("s.py", "def get_sweep(): raise SystemExit", "failed: SystemExit"),
    ("s.py", "from jaxablate.sweep import Sweep\ndef get_sweep(): return Sweep(config='quickstart', seeds=())",
     "at least one"),
    ("s.txt", "", "must end in .py or .toml"),
    ("s.py", None, "does not exist; give a Python file with get_sweep(), or one of the shipped"),
])
def test_a_wrong_sweep_file_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, name, content, message):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    line = error_of(capsys, "sweep", name)
    assert message in line and len(line) < 600
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--array", "27"], "--array 27 must be below 27"), (["--array", "1", "--jobs", "2"], "give one of the two"),
    (["--only", "local-k9/*"], "is no run of the sweep"), (["--set", "train.steps"], "is no SETTING=VALUE"),
    (["--set", "train.stps=3"], "did you mean 'train.steps'?"), (["--jobs", "0"], "jobs=0 must be at least 1"),
    (["--set", "model.ablation=local"], "settings has model.ablation, which the grid sets"),
    (["--config", "nowhere.py"], "--config nowhere.py does not exist"),
])
def test_options_that_do_not_fit_are_one_line(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, "sweep", "paper_table", *arguments)


def test_the_papers_table_is_nine_configurations_of_three_seeds(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run_command("sweep", "paper_table", "--dry-run", "--set", "train.steps=7", "--config", "quickstart")
    out = capsys.readouterr().out
    assert "27 runs in runs/paper_table" in out and out.count("not begun") == 27
    assert all(f"{name}/seed-2" in out for name in ("baseline", "local-k8", "global-k1"))
    assert not (tmp_path / "runs").exists()
    sweep, config = load_sweep("paper_table", settings={"train.steps": 7})
    cells = sweep.cells(config)
    assert {cell.config.train.steps for cell in cells} == {7} and config.model.d_model == 128
    ks = {(cell.config.model.ablation, cell.config.model.k_neurons) for cell in cells}
    assert len(ks) == 9 and all(c.config.model.k_attention == c.config.model.k_neurons for c in cells)


def test_toml_and_python_say_the_same(tmp_path):
    (tmp_path / "base.py").write_text("from jaxablate.config import Config\ndef get_config(): return Config()\n")
    (tmp_path / "a.toml").write_text("""
config = "base.py"
seeds = [0, 1]
suites = ["perplexity"]
[settings]
train.steps = 50
[grid]
model.ablation = ["local", "none"]
[grid.k.4]
"model.k_attention" = 4
model.k_neurons = 4
[[exclude]]
"model.ablation" = "none"
k = 4
""")
    (tmp_path / "b.py").write_text("""
from jaxablate.config import Config
from jaxablate.sweep import Sweep
def get_sweep():
    return Sweep(config=Config(), seeds=(0, 1), suites=("perplexity",), settings={"train.steps": 50},
                 grid={"model.ablation": ("local", "none"), "k": {4: {"model.k_attention": 4, "model.k_neurons": 4}}},
                 exclude=({"model.ablation": "none", "k": "k-4"},))
""")
    (a, at), (b, bt) = (load_sweep(str(tmp_path / name)) for name in ("a.toml", "b.py"))
    assert a.cells(at) == b.cells(bt) and a.suites == b.suites
    assert [cell.name for cell in a.cells(at)] == ["local-k-4/seed-0", "local-k-4/seed-1"]


def test_the_examples_of_the_docs_are_one_sweep(tmp_path):
    text = (Path(command.__file__).parents[2] / "docs" / "sweeps.md").read_text()
    found = []
    for language, suffix in (("python", "py"), ("toml", "toml")):
        (block,) = re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        (tmp_path / f"s.{suffix}").write_text(block)
        sweep, config = load_sweep(str(tmp_path / f"s.{suffix}"))
        found.append((sweep.cells(config), sweep.suites))
    assert found[0] == found[1] and len(found[0][0]) == 15


# Runs ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with a sweep of two variants and two seeds, and its table when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "tiny.py").write_text(SWEEP.format(data=str(folder / "data")))
    (folder / "undisturbed").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "undisturbed")
        patch.setattr(command, "start", in_this_process)
        run_command("sweep", "../tiny.py")
    return folder


TABLES = ("table.csv", "table.md", "table.tex")


def tables(folder):
    return [(folder / "runs" / "tiny" / name).read_text() for name in TABLES]


@pytest.mark.system
def test_a_sweep_trains_scores_and_compares_every_run(shared):
    folder = shared / "undisturbed" / "runs" / "tiny"
    assert sorted(p.name for p in folder.iterdir()) == ["local", "none", "report.html", *TABLES]
    rows = (folder / "table.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[1].startswith("local,runs/tiny/local/seed-0;runs/tiny/local/seed-1,0;1,6,")
    assert read_config(folder / "none" / "seed-1").train.seed == 1
    assert "none" in (folder / "table.md").read_text()


@pytest.mark.system
def test_a_sweep_that_is_killed_twice_goes_on_to_the_same_table(shared, tmp_path, monkeypatch, capsys):
    kills = [Moment(appears="runs/tiny/local/seed-0/checkpoints/4/seal.json", signal=signal.SIGKILL),
             Moment(appears="runs/tiny/local/seed-1/results.json", signal=signal.SIGKILL)]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.py").write_text((shared / "tiny.py").read_text())
    alone = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with Launcher(alone, preloaded=("jaxablate.commands.sweep",)) as launcher:
        def start(line, log, variables, on_cores):
            log.parent.mkdir(parents=True, exist_ok=True)
            moments = [kills.pop(0)] if kills else []
            got = launcher.run(("jaxablate", *line), tmp_path, moments=moments, limit=300)
            log.write_text(got.out + got.err)
            return Ended(got.code)

        monkeypatch.setattr(command, "start", start)
        line = error_of(capsys, "sweep", "tiny.py")
        assert "2 of 4 runs failed (local/seed-0: ended by signal 9; local/seed-1: ended by signal 9)" in line
        run_command("sweep", "tiny.py", "--dry-run")
        listed = " ".join(capsys.readouterr().out.split())
        assert "local/seed-0 │ step 4 of 6" in listed and listed.count("│ done") == 2
        run_command("sweep", "tiny.py")
    assert "2 of 4 runs are done already" in capsys.readouterr().out
    assert tables(tmp_path) == tables(shared / "undisturbed")
    resumed = json.loads((tmp_path / "runs/tiny/local/seed-0/run.json").read_text())["resumed"]
    assert [entry["step"] for entry in resumed] == [4]


def test_what_is_done_is_not_begun_again(shared, monkeypatch, capsys):
    monkeypatch.chdir(shared / "undisturbed")
    before = tables(shared / "undisturbed")
    monkeypatch.setattr(command, "start", None)
    capsys.readouterr()
    run_command("sweep", "../tiny.py")
    out = capsys.readouterr().out
    assert "4 of 4 runs are done already" in out and "perplexity clean" in out
    assert tables(shared / "undisturbed") == before
    run_command("sweep", "../tiny.py", "--array", "3")
    assert "none/seed-1 is done" in capsys.readouterr().out


def test_an_array_does_one_run_and_scores_what_is_missing_alone(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    done = copy_run(shared / "undisturbed/runs/tiny/local/seed-0", tmp_path / "runs/tiny/local/seed-0")
    run_command("score", done, "--suites", "weights")
    before = json.loads((done / "results.json").read_text())["suites"]["weights"]["provenance"]["date"]
    listed = [task.state() for task in command.parse([str(shared / "tiny.py")], prog="s").tasks()]
    assert listed[0] == (False, "trained, 2 of 3 suites to score") and listed[1] == (False, "not begun")
    time.sleep(1.1)  # dates have seconds
    capsys.readouterr()
    run_command("sweep", shared / "tiny.py", "--array", "0")
    out = capsys.readouterr().out
    assert "perplexity ..." in out and "weights ..." not in out and "begins" not in out
    suites = json.loads((done / "results.json").read_text())["suites"]
    assert list(suites) == ["perplexity", "gates", "weights"] and suites["weights"]["provenance"]["date"] == before
    assert sorted(p.name for p in (tmp_path / "runs/tiny").iterdir()) == ["local"]


def test_a_folder_of_another_run_is_refused_before_anything_begins(shared, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    copy_run(shared / "undisturbed/runs/tiny/local/seed-0", tmp_path / "runs/tiny/none/seed-1")
    line = error_of(capsys, "sweep", shared / "tiny.py")
    assert "runs/tiny/none/seed-1 holds a run with another configuration" in line
    assert not (tmp_path / "runs/tiny/local").exists()


def test_a_run_is_finished_when_its_newest_checkpoint_is_the_last(language_run, classifier_run, tmp_path):
    for run in (language_run, classifier_run):
        config = read_config(run)
        assert is_finished(run, config)
        longer = {"steps": 7} if config.task == "language" else {"epochs": 2}
        assert not is_finished(run, dataclasses.replace(config, train=dataclasses.replace(config.train, **longer)))
    copy = copy_run(language_run, tmp_path / "run")
    (copy / "checkpoints/6/seal.json").unlink()
    assert stored_progress(copy)[0] == 4 and not is_finished(copy, read_config(copy))
    assert not is_finished(tmp_path, read_config(copy))


# Processes -----------------------------------------------------------------------------------------------------------


class Slow(Ended):
    """A process that ends when it has been asked about so often."""

    def __init__(self, polls, code=0):
        super().__init__(None)
        self.polls, self.code, self.stopped = polls, code, False

    def poll(self):
        self.polls -= 1
        if self.polls < 0:
            self.returncode = self.code
        return self.returncode

    def terminate(self):
        self.stopped = True

    def wait(self):
        self.returncode = 143


def cells(tmp_path, count):
    config = language_config(tmp_path)
    return [CellTask(Cell(name=f"c{i}", labels={}, config=config), tmp_path / f"c{i}", ("weights",))
            for i in range(count)]


def test_so_many_jobs_run_at_once_and_one_that_fails_stops_no_other(tmp_path, monkeypatch, capsys):
    started, most = [], []

    def start(line, log, variables, on_cores):
        log.parent.mkdir(parents=True)
        log.write_text("step 1\nerror: the disk is full\n")
        started.append(Slow(polls=3, code=2 if line == ["c1"] else 0))
        most.append(sum(p.returncode is None for p in started))
        return started[-1]

    monkeypatch.setattr(command, "start", start)
    monkeypatch.setattr(command, "_POLL_SECONDS", 0.001)
    tasks = cells(tmp_path, 5)
    failed = command.do_all(tasks, 2, lambda task: [task.cell.name], PlainConsole())
    assert [(task.cell.name, reason) for task, reason in failed] == [("c1", "the disk is full")]
    assert len(started) == 5 and max(most) == 2
    out = capsys.readouterr().out
    assert "c1 failed: the disk is full" in out and out.count(" is done, in 0:0") == 4 and "left)" in out


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot choose their cores here")
def test_a_process_keeps_to_its_cores(tmp_path, monkeypatch):
    shown = tmp_path / "shows_cores"
    shown.write_text(f"#!{sys.executable}\nimport os, time\ntime.sleep(0.5)\nprint(os.sched_getaffinity(0))\n")
    shown.chmod(0o755)
    monkeypatch.setattr(command.sys, "executable", str(shown))
    one = {max(os.sched_getaffinity(0))}
    processes = [command.start([], tmp_path / name, os.environ, on) for name, on in (("some", one), ("all", ()))]
    for process in processes:
        process.communicate(timeout=30)
    assert (tmp_path / "some").read_text().strip() == str(one)
    assert (tmp_path / "all").read_text().strip() == str(os.sched_getaffinity(0))


def test_a_signal_stops_the_runs_and_waits_for_them(tmp_path, monkeypatch):
    process = Slow(polls=10**9)

    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "start", lambda *rest: process)
    monkeypatch.setattr(command.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        command.do_all(cells(tmp_path, 1), 1, lambda task: [], PlainConsole())
    assert process.stopped and process.returncode == 143


def test_a_process_ends_with_the_one_that_started_it():
    code = "import time\nfrom jaxablate.exits import follow_parent\nfollow_parent()\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, env={**os.environ, FOLLOWED: "yes"})
    time.sleep(0.5)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=20) == -signal.SIGTERM


def test_a_hostile_log_gives_no_orders_to_the_terminal(tmp_path, monkeypatch, capsys):
    def start(line, log, variables, on_cores):
        log.parent.mkdir(parents=True)
        log.write_bytes(b"error: no file \x1b[31m[/b]\xff\xe2\x80\xae.\n")
        return Ended(2)

    monkeypatch.setattr(command, "start", start)
    command.do_all(cells(tmp_path, 1), 1, lambda task: [], PlainConsole())
    out = capsys.readouterr().out
    assert "[31m[/b]" in out and "\x1b" not in out and "\u202e" not in out


def test_the_shipped_sweeps_are_found_by_name():
    for path in sorted((Path(command.__file__).parents[2] / "configs" / "sweeps").glob("*.py")):
        assert load_sweep(path.stem)[0].cells(load_sweep(path.stem)[1])


def test_lines_of_a_log_are_not_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "_LOOK_SECONDS", 0)
    (task,) = cells(tmp_path, 1)
    seen = [("starting", None, None), ("step 1/6", 1, None), ("step 2/6", 2, 5.0), ("step 6/6", 6, None),
            ("step 6/6", 6, None), *[("scoring, 0 of 1 suites done", None, None)] * 2,
            ("scoring, 1 of 1 suites done", None, None)]
    running = {0: command.Running(task, Ended(0), 0)}
    monkeypatch.setattr(command.Running, "look", lambda self: seen.pop(0))
    board = command.Board(1, 0, 1, PlainConsole())
    with board.shown(running, []):
        while seen:
            board.going()
    assert capsys.readouterr().out.splitlines() == [
        "c0: step 1/6", "c0: step 6/6", "c0: scoring, 0 of 1 suites done", "c0: scoring, 1 of 1 suites done"]
