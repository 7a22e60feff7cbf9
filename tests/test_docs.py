"""README and docs: examples run, every command line is one that the program or CI knows, names and links exist."""

import functools
import importlib
import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import tyro

import jaxablate as ja
from jaxablate.commands.main import COMMANDS
from jaxablate.data import __main__ as data_program
from jaxablate.training import large_pages

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = {path.name: path.read_text()
         for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))}
NOTEBOOKS = {path.name: json.loads(path.read_text()) for path in sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))}
FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)

RUN_BY = {  # the test, or the step of CI, that runs a command from end to end
    "quickstart": "tests/test_quickstart.py", "train": ".ci/wheel", "import": "tests/test_import_command.py",
    "export": "tests/test_import_command.py", "score": ".ci/wheel", "compare": "tests/test_eval_cli.py",
    "sweep": "tests/test_sweep.py", "serve": "tests/test_serve.py", "match": "tests/test_match.py",
    "circuit": "tests/test_circuit_command.py", "sae": "tests/test_sae_command.py",
    "neurons": "tests/test_neurons_command.py", "explain": "tests/test_explain.py",
    "make setup": "Makefile", "make test": ".ci/run", "make lint": ".ci/run", "make docs": ".ci/docs",
    "make quickstart": "tests/test_quickstart.py", "bash .ci/explorer": ".ci/run",
    "python guide.py": "tests/test_guide.py", "sbatch": "tests/test_clusters.py", "kubectl": "tests/test_clusters.py",
}
OTHERS = ("tensorboard --logdir ",)
"""Programs of others, which no test here starts."""


def blocks(language, text):
    return [content for kind, content in FENCED.findall(text) if kind == language]


def command_lines():
    """(page, command) of every line of every bash block: comments gone, loops as what they repeat."""
    for page, text in PAGES.items():
        for line in "\n".join(blocks("bash", text)).replace("\\\n", " ").splitlines():
            for part in re.findall(r"\bdo (.*); done", line) or [line]:
                words = shlex.split(part, comments=True)
                if words:
                    yield page, shlex.join(words)


def parse(line):
    name, *arguments = shlex.split(line)
    return importlib.import_module(f"jaxablate.commands.{name}").parse(arguments, prog=name)


@functools.cache
def options(benchmark):
    module = importlib.import_module(f"benchmarks.{benchmark}")
    return (importlib.import_module(f"{module.__name__}.__main__") if hasattr(module, "__path__") else module).Options


def check(line, folder):
    """Parses a command as the program would, or finds what it names; raises where it cannot."""
    words = shlex.split(line)
    match words:
        case ["jaxablate", name, *_]:
            assert name in COMMANDS
            parse(shlex.join(words[1:]))
        case ["python", "-m", "jaxablate.data", "download-sentiment", source]:
            assert source in ("sst2", "imdb")  # tests/test_sentiment_prepare.py
        case ["python", "-m", "jaxablate.data", *arguments]:  # run, on a text of a few stories
            files = [str(path) for path in folder.glob("data/*.tokens")] if "info" in arguments else arguments[1:]
            assert data_program.main([arguments[0], *files]) == 0
        case ["python", "-m", module, *arguments] if module.startswith("benchmarks."):
            tyro.cli(options(module.partition(".")[2]), args=arguments)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["pip", "install", what]:
            extras = re.findall(r"\[(.*)\]", what)
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            known = {*project["optional-dependencies"], "tpu", "cuda13"}
            assert what.startswith((".", "jax[", "jaxablate-")) and set(extras) <= known
        case ["bash", script] | ["kubectl", "apply", "-f", script] | ["sbatch", script, *_] if "--wrap" not in words:
            assert (ROOT / script).is_file()
            if words[0] == "sbatch":
                parse(shlex.join(["train", *words[2:]]))
        case ["sbatch", *_, "--wrap", command]:
            check(command.replace('"$SLURM_ARRAY_TASK_ID"', "0"), folder)
        case ["export", setting]:
            assert setting == f"{large_pages.VARIABLE}={large_pages.WANTED}"
        case ["python", "guide.py", _]:
            pass  # tests/test_guide.py
        case _:
            assert line.startswith(OTHERS), f"nothing knows {line!r}"


def test_every_command_line_is_known(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    story = "Once there was a small boy named Max. He had a red ball.\n<|endoftext|>\n"
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).write_text(story * 30)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    lines = dict.fromkeys(command_lines())
    assert len(lines) > 60
    for page, line in lines:
        try:
            check(line, tmp_path)
        except (Exception, SystemExit) as error:
            if not (isinstance(error, SystemExit) and error.code == 0 and "--help" in line):
                pytest.fail(f"{page}: {line}: {error!r}")


def test_every_command_of_the_docs_is_run_somewhere():
    lines = [line for _, line in command_lines()]
    assert {line.split()[1] for line in lines if line.startswith("jaxablate ")} == set(COMMANDS)
    assert set(COMMANDS) <= set(RUN_BY)
    for line in lines:
        name = line.removeprefix("jaxablate ")
        known = [where for command, where in RUN_BY.items() if name.startswith(command)]
        if line.startswith(("pip ", "python -m ", "bash .ci/run", *OTHERS)):
            continue  # .ci/wheel installs, .ci/run is CI itself; others are checked above
        assert known, f"add to RUN_BY where {line!r} is run"
    for command, where in RUN_BY.items():
        word = command.split()[-1].replace("guide.py", "guide").replace("sbatch", "slurm").replace("kubectl", "jobset")
        assert word.removeprefix(".ci/") in (ROOT / where).read_text(), f"{where} does not run {command}"


@pytest.mark.system
def test_the_library_example_runs_and_learns(tmp_path, monkeypatch, capsys):
    example = next(block for block in blocks("python", PAGES["training.md"]) if "range(200)" in block)
    fewer = example.replace("range(200)", "range(30)")  # unoptimised code is slow: enough to see it learn
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(fewer, "training.md", "exec"), names)
    assert float(names["metrics"]["loss"]) < 4.5  # 5.8, log of the vocabulary, before training
    assert names["gates"].sum(-1).tolist() == [8.0] * 4
    shown = capsys.readouterr().out.splitlines()
    assert shown[1:3] == ["(8, 64, 318) (8, 64, 318)", "(8, 64, 1, 64) (8, 64, 1, 256)"]
    assert shown[3].startswith("Once upon a time, there was a")


@pytest.mark.system
def test_the_ten_lines_run(tmp_path, monkeypatch, capsys):
    (example,) = blocks("python", README)
    assert len(example.strip().splitlines()) <= 11
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert re.match(r"\d+ of 262 edges\nstrongest: .+->.+\narea under faithfulness: \d\.\d+\n",
                    capsys.readouterr().out)
    assert (tmp_path / "circuit.json").is_file()


def test_flags_in_the_text_are_known(capsys):
    helps = [f"{name} --help-all" for name in COMMANDS] + ["train --config sst2 --help-all"]
    for line in helps:
        with pytest.raises(SystemExit):
            parse(line)
    known = set(re.findall(r"--[\w.-]+", capsys.readouterr().out)) | {"--help-all"}
    text = "".join(FENCED.sub("", PAGES[name]) for name in ("README.md", "training.md", "evaluating.md", "own_data.md"))
    named = set(re.findall(r"(?<![\w-])--[a-z][\w.-]+", re.sub(r"<!--.*?-->", "", text)))
    assert len(named) > 10
    assert not named - known


@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_library_exist(page):
    for name in set(re.findall(r"\bja((?:\.[A-Za-z_]\w*)+)", PAGES[page])):
        found = ja
        for part in name.strip(".").split("."):
            if isinstance(found, type) or not hasattr(found, part):
                assert hasattr(found, part) or isinstance(found, type), f"{page}: ja{name} does not exist"
                break
            found = getattr(found, part)


@pytest.mark.parametrize("page", PAGES)
def test_examples_are_python(page):
    for block in blocks("python", PAGES[page]):
        compile(block, page, "exec")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_pictures_are_there(page):
    folder = ROOT if page in ("README.md", "CONTRIBUTING.md") else ROOT / "docs"
    named = re.findall(r"\]\(([\w./-]+?\.\w+)(?:#[\w-]+)?\)", FENCED.sub("", PAGES[page]))
    named += re.findall(r"(?:src|srcset)=\"([\w./-]+)\"", PAGES[page])
    missing = [name for name in named if not (folder / name).exists()]
    assert not missing


def test_files_that_are_named_are_there():
    """Paths within the repository, in pages and in comments of files that are no Python."""
    others = [ROOT / name for name in ("pyproject.toml", "Makefile", "ARCHITECTURE.md", "constraints.txt")]
    texts = PAGES | {path.name: path.read_text() for path in others}
    named = {(page, name) for page, text in texts.items()
             for name in re.findall(r"(?<![\w./-])(?:jaxablate|configs|benchmarks|tests)/[\w/]+\.\w+", text)}
    assert not [(page, name) for page, name in named if not (ROOT / name).exists()]


def test_readme_is_short_and_its_folders_are_there():
    assert len(README.splitlines()) < 200
    (folders,) = (block for block in blocks("", README) if "jaxablate/ops/" in block)
    assert not [line for line in folders.splitlines() if not (ROOT / line.split()[0]).exists()]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_are_kept_without_outputs(name):
    """What they do is run where the site is built (.ci/docs)."""
    code = [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]
    assert code and not [cell for cell in code if cell["outputs"] or cell["execution_count"]]
    for cell in code:
        compile("".join(cell["source"]), name, "exec")
