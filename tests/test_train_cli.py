"""The command line of `jaxablate train`: typed overrides, and one line for whatever is wrong."""

import os

import pytest
from helpers.commands import error_of

from jaxablate.commands.train import load_config, parse
from jaxablate.config import Config, MeshConfig
from jaxablate.errors import ConfigError

CONFIG = """
from jaxablate.config import Config, DataConfig, ModelConfig, TrainConfig

def get_config():
    return Config(
        model=ModelConfig(vocab_size=320, context_length=16, d_model=16, n_layers=2, n_heads=2, k_attention=3),
        data=DataConfig(source="embedded", tokenizer="corpus", cache_dir={cache!r}),
        train=TrainConfig(steps=30, batch_size=8, sequence_length=16),
    )
"""


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG.format(cache=str(tmp_path / "cache")))
    return path


def test_overrides_are_typed_and_change_only_what_they_name(config_file):
    model = "--model.ablation global --model.k-neurons 4 --model.k-attention 2 3"
    others = "--optimizer.clip-norm None --mesh.fsdp 2"
    got = parse(["--config", str(config_file), "--workdir", "runs/x", *model.split(), *others.split()])
    stored = load_config(config_file)
    assert got.settings.model.ablation == "global"
    assert got.settings.model.k_neurons == 4
    assert got.settings.model.k_attention == (2, 3)
    assert got.settings.optimizer.clip_norm is None
    assert got.settings.mesh == MeshConfig(fsdp=2)
    assert (got.settings.train, got.settings.data) == (stored.train, stored.data)
    assert str(got.workdir) == "runs/x" and not got.distributed


def test_a_config_is_given_once(config_file):
    """The settings came from the first, and the name from the second."""
    with pytest.raises(ConfigError, match="--config is given 2 times"):
        parse(["--config", str(config_file), "--workdir", "x", "--config=quickstart"])


def test_a_config_that_changed_within_a_second_is_read_anew_and_leaves_no_bytecode(config_file):
    text, then = config_file.read_text(), config_file.stat()
    assert load_config(config_file).train.steps == 30
    config_file.write_text(text.replace("steps=30", "steps=40"))
    os.utime(config_file, ns=(then.st_atime_ns, then.st_mtime_ns))
    assert load_config(config_file).train.steps == 40
    assert [p.name for p in config_file.parent.iterdir()] == [config_file.name]


def test_without_overrides_the_file_is_taken_as_it_is(config_file):
    assert parse([f"--config={config_file}", "--workdir", "x"]).settings == load_config(config_file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model.k-neurons 64", "error: k_neurons=64 must be below the 64 neurons of a layer; choose 1..63"),
        ("--train.batch-size 12", "error: 12 rows (train.batch_size over train.accumulation_steps) must be a mul"),
        ("--mesh.fsdp 3", "error: mesh.fsdp=3 times mesh.tensor=1 must divide the 8 devices here"),
        ("--data.tokenizer gpt2", "error: tokenizer='gpt2' does not fit source='embedded'"),
        ("--model.vocab-size 100", "beyond the model's vocab_size=100; set model.vocab_size to at least"),
        # Sizes beyond arrays were refused after minutes, with a traceback, or when the machine's memory was full.
        ("--model.d-model 99999999999", "error: d_model=99999999999 is out of range"),
        ("--model.n-layers 99999999999", "error: n_layers=99999999999 is out of range"),
        ("--model.context-length 2147483648", "error: context_length=2147483648 is out of range"),
        ("--model.vocab-size 2147483647", "parameters, their gradient and the optimizer's state need"),
    ],
)
def test_a_bad_setting_is_one_line_and_leaves_nothing(config_file, tmp_path, capsys, flags, message):
    small = "--data.embedded-stories 20 --data.embedded-valid-stories 5"
    line = error_of(capsys, "train", "--config", config_file, "--workdir", tmp_path / "w", *small.split(),
                    *flags.split())
    assert message in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("arguments", "names"), [
    ("--config {} --workdir w --model.k-neuron 3", ("--model.k-neurons", "Perhaps you meant")),
    ("", ("--config", "--workdir")),
], ids=["unknown", "missing"])
def test_a_flag_that_is_unknown_or_missing_is_named(config_file, capsys, arguments, names):
    with pytest.raises(SystemExit) as stop:
        parse(arguments.format(config_file).split())
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert all(name in err for name in names)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist; give a Python file with get_config()"),
        ("x = 1", "failed: AttributeError: module 'jaxablate_config_c' has no attribute 'get_config'"),
        ("def get_config(:", "failed: SyntaxError"),
        ("def get_config(): return {'steps': 3}", "must return a jaxablate.config.Config or ClassificationConfig, not"),
        ("raise SystemExit", "failed: SystemExit"),
        ("import sys\ndef get_config(): sys.exit(0)", "failed: SystemExit: 0"),
        ("def get_config(): return get_config()", "failed: RecursionError: maximum recursion depth exceeded"),
        ("class C:\n    def __repr__(self): 1 / 0\ndef get_config(): return C()", "ClassificationConfig, not a C"),
        ("class C:\n    __class__ = property(lambda s: 1 / 0)\ndef get_config(): return C()", "failed: ZeroDivision"),
        ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "failed: E"),
        ("raise ValueError('x' * 10_000)", "failed: ValueError: xxx"),
        ("from jaxablate.config import *\ndef get_config(): return Config(train=TrainConfig(steps=3.0))",
         "TrainConfig.steps=3.0 must be of type int"),
        ("from jaxablate.config import *\nmodel = ModelConfig(k_neurons=0)", "k_neurons=0 must be at least 1"),
    ],
)
def test_a_missing_or_broken_config_file_is_one_line(tmp_path, capsys, content, message):
    path = tmp_path / "c.py"
    if content is not None:
        path.write_text(content)
    line = error_of(capsys, "train", "--config", path, "--workdir", tmp_path / "w")
    assert message in line and len(line) < 1000


def test_a_batch_that_the_machine_cannot_hold_is_refused(config_file, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("jaxablate.training.loop.host_memory", lambda: 200_000)
    arguments = ("train", "--config", config_file, "--workdir", tmp_path / "w", "--train.batch-size")
    line = error_of(capsys, *arguments, 8000)
    assert "train.batch_size=8000 with 16 tokens a row needs 0.0 GB, this machine has 0.0 GB" in line
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(("path", "message"), [
    ("a" * 300, "--config='aaa"), ("x/" * 3000, "--config='x/x"), ("", "--config='' is empty"),
    ("loop", "Too many levels of symbolic links"), ("c\udcff.py", "is not UTF-8"),
], ids=["long", "deep", "empty", "loop", "bytes"])
def test_a_path_that_no_config_file_has_is_one_line(tmp_path, capsys, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    line = error_of(capsys, "train", "--config", path, "--workdir", "w")
    assert message in line and len(line) < 500
    assert message in error_of(capsys, "compare", "w", "--out", path).replace("out=", "--config=")


def test_help_shows_every_setting(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(["--help-all"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert all(flag in text for flag in ("--model.k-neurons", "--optimizer.beta1", "--mesh.fsdp", "--train.seed"))


def test_float64_outside_the_command_line_says_what_to_set(config_file, tmp_path):
    from jaxablate.runs.workdir import require_x64

    config = parse(["--config", str(config_file), "--workdir", "x", "--model.param-dtype", "float64"]).settings
    assert isinstance(config, Config)
    with pytest.raises(ConfigError, match="needs jax_enable_x64; set the environment variable JAX_ENABLE_X64=1"):
        require_x64(config)
