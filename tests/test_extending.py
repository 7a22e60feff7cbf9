"""docs/extending.md, done by a package of a user's own that is installed beside this one."""

import json
import os
import re
from pathlib import Path

import pytest
from faults.launcher import PRELOADED, Launcher
from helpers.commands import run_command
from helpers.explorer import read_page, shown_results, shown_titles

from jaxablate.reports import results

pytestmark = pytest.mark.system
DOCS = Path(__file__).parent.parent / "docs" / "extending.md"
COMMAND = """
from jaxablate.commands.main import main as command
from jaxablate.suites import circuits

def main(arguments):
    circuits.PROMPTS, circuits.BATCHES, circuits.ORDERS, circuits.RANDOM_MODELS, circuits.DRAWS = 6, 2, 1, 1, 20
    circuits.PRUNE_STEPS, circuits.PRUNE_SEEDS = 2, 1
    return command(arguments)
"""
"""The program with less work for the suite `circuits`."""
GATE = """
import jax
import jaxablate as ja

def main(arguments):
    config = ja.ModelConfig(d_model=4, n_layers=1, n_heads=2, gate="graded", k_attention=1)
    print(ja.gating.gate(config, "attention", 0)(jax.numpy.array([0.0, -1.0, -2.0, -3.0])))
    return 0
"""


@pytest.fixture(scope="module")
def jaxablate(tmp_path_factory):
    """Runs a program, of whose printing it gives the text, by a Python that has the package of the documentation."""
    folder = installed(tmp_path_factory.mktemp("site"))
    (folder / "command.py").write_text(COMMAND)
    (folder / "gate.py").write_text(GATE)
    environment = {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
                   "OPENBLAS_NUM_THREADS": "1"}  # a process with threads is not forked
    root = Path(__file__).parent.parent

    with Launcher(environment, preloaded=(*PRELOADED, "command", "gate")) as launcher:
        def run(*arguments: object, program: str = "command") -> str:
            done = launcher.run([program, *map(str, arguments)], root)
            assert done.code == 0, done.err
            return done.out

        yield run


def installed(folder: Path) -> Path:
    """The folder with the package of the documentation and its entry points, as pip lays it out."""
    text = DOCS.read_text()
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").touch()
    for code in re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        name = re.match(r"# (my_package/\w+\.py)", code)[1]
        (folder / name).write_text(code)
    metadata = folder / "my_package-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    toml = re.search(r"^```toml\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[1]
    entry_points = re.sub(r'\[project\.entry-points\."(.*?)"\]', r"[\1]", toml).replace('"', "")
    (metadata / "entry_points.txt").write_text(entry_points)
    return folder


@pytest.fixture(scope="module")
def scored(jaxablate, baseline_run):
    jaxablate("score", "--workdir", baseline_run, "--suites", "norms", "circuits")
    return baseline_run


def test_a_suite_from_outside_is_scored_reported_and_compared(jaxablate, scored, tmp_path):
    record = results.read(scored).suites["norms"]
    assert record.figures[0].name == "mean norm" and record.figures[0].estimate.has_interval
    assert "Norms of the weights" in shown_titles(scored / "report.html")
    jaxablate("compare", scored, "--out", tmp_path / "table")
    assert "mean norm" in (tmp_path / "table.md").read_text()


def test_a_circuit_method_from_outside_finds_circuits_and_is_ranked(jaxablate, scored):
    assert "later" in str(shown_results(scored / "report.html"))
    jaxablate("circuit", "--workdir", scored, "--method", "later", "--edges", 5, "--prompts", 8)
    assert list((scored / "circuits").glob("*later*/*.json"))


def test_a_regulariser_from_outside_is_trained_with_logged_and_drawn(jaxablate, language_run, tmp_path):
    values = json.loads((language_run / "config.json").read_text())
    values["train"] |= {"steps": 2, "eval_every": 2, "checkpoint_every": 2}
    values["model"]["n_layers"] = 1
    config = tmp_path / "small.py"
    config.write_text("import json\nfrom jaxablate.config import run_from_dict\n\n"
                      f"def get_config():\n    return run_from_dict(json.loads({json.dumps(values)!r}))\n")
    run = tmp_path / "run"
    jaxablate("train", "--config", config, "--workdir", run, "--objective.regularizers", "sparsity", 0.5)
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    terms = [first[name] for name in ("loss_clean", "loss_ablated", "sparsity")]
    assert first["sparsity"] > 0 and first["loss"] == pytest.approx(sum(terms) / 2, rel=1e-4)
    run_command("score", "--workdir", run, "--suites", "weights")  # without the package: nothing trains here
    manifest, blobs = read_page(run / "report.html")
    assert "sparsity" in [metric["name"] for metric in blobs[manifest["runs"][0]["history"]]["metrics"]]


def test_a_gate_from_outside_is_what_the_model_uses(jaxablate):
    assert jaxablate(program="gate") == "[0.5 0.  0.  0. ]\n"


def test_an_autoencoder_architecture_from_outside_is_trained_and_measured(jaxablate, long_run):
    jaxablate("sae", "--workdir", long_run, "--architecture", "tanh", "--steps", 8, "--tokens-per-step",
              64, "--buffer-batches", 8, "--width", 2, "--batch-size", 64)
    row, = results.read(long_run).suites["sae"].details["autoencoders"]
    assert row["kind"] == "tanh L1 5" and row["name"].startswith("clean.layer_0.mlp_out-tanh-l1-5-seed-0-")
