"""``jaxablate import`` and ``jaxablate export``: a folder of Hugging Face becomes a run, and a run a folder."""

import json

import jax
import numpy as np
import pytest
import tokenizers
from helpers.commands import error_of, run_command
from helpers.huggingface import change_settings, golden_folder

import jaxablate as ja
from jaxablate.circuits.tasks import PromptText, tokenise
from jaxablate.data.tokenizer import load_tokenizer, tokenizer_of_folder
from jaxablate.errors import DataError
from jaxablate.interop import from_huggingface

STORIES = "\n<|endoftext|>\n".join(["ab ba", "b a b a b", "aabb", "ba"] * 6)


def words(*, bos):
    """A tokenizer of a few characters and two special tokens, in fewer than the models' 29 ids."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(
        {"<pad>": 0, "</s>": 1, "<s>": 2} | {letter: 3 + i for i, letter in enumerate("ab </s>")}))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    made.decoder = tokenizers.decoders.Fuse()
    made.add_special_tokens(["</s>", "<s>"])
    if bos:
        made.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    return made


def with_tokenizer(folder, *, bos=True):
    words(bos=bos).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}, "bos_token": "<s>"}))
    (folder / "text.txt").write_text(STORIES)
    return folder


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """A Llama's folder, and the run that was made of it."""
    folder = tmp_path_factory.mktemp("import")
    source = folder / "llama"
    source.mkdir()
    with_tokenizer(golden_folder("llama", source)[0])
    run_command("import", source, "--workdir", folder / "run", "--data.valid-path", source / "text.txt",
                "--data.cache-dir", folder / "data", "--sequence-length", 8)
    return source, folder / "run"


def test_a_folder_becomes_a_run_that_opens(imported):
    source, workdir = imported
    run = ja.open_run(workdir)
    config, params = from_huggingface(source)
    assert (run.config.model, run.step, run.streams) == (config, 0, ("clean",))
    jax.tree.map(np.testing.assert_array_equal, run.params, params)
    record = json.loads((workdir / "run.json").read_text())
    assert record["imported"]["family"] == "llama" and record["parameters"] == run.n_parameters
    batch = next(run.splits["valid"].batches())
    assert batch["inputs"].shape == (8, 8)


def test_a_beginning_of_text_token_is_kept_before_every_text_and_prompt(imported):
    run = ja.open_run(imported[1])
    assert run.tokenizer.encode("ab") == [3, 4] and run.tokenizer.bos_id == 2
    tokens = run.splits["valid"].tokens
    assert tokens.header.n_stories == 24
    np.testing.assert_array_equal(np.asarray(tokens.tokens[:7]), [2, 3, 4, 5, 4, 3, 1])
    pairs = tokenise([PromptText(clean="ab", corrupt="bb", answers=("a",), wrong_answers=("b",))], run.tokenizer,
                     name="x")
    assert pairs.clean.tolist() == [[2, 3, 4]]


def test_perplexity_of_an_imported_run_is_that_of_its_logits(imported):
    run = ja.open_run(imported[1])
    nats, count = 0.0, 0.0
    for batch in run.splits["valid"].batches():
        log_p = jax.nn.log_softmax(run.model.apply({"params": run.params}, batch["inputs"], method="clean").logits)
        losses = -np.take_along_axis(np.asarray(log_p), np.asarray(batch["targets"])[..., None], axis=-1)[..., 0]
        nats, count = nats + (losses * np.asarray(batch["mask"])).sum(), count + np.asarray(batch["mask"]).sum()
    loss = ja.score(imported[1], suites=("perplexity",)).suites["perplexity"].details["losses"][0]
    assert loss["loss"]["value"] == pytest.approx(nats / count, rel=1e-5)


def test_a_run_is_exported_with_its_tokenizer_and_comes_back(imported, tmp_path):
    source, workdir = imported
    run_command("export", tmp_path / "out", "--workdir", workdir)
    names = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    theirs, ours = (json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "out"))
    assert theirs.pop("rope_parameters") == ours.pop("rope_parameters") and theirs.items() <= ours.items()
    whole = tokenizer_of_folder(tmp_path / "out")
    assert (whole.eot_id, whole.bos_id, whole.encode("ab")) == (1, 2, [3, 4])


def test_export_refuses_a_folder_that_is_there(imported, capsys):
    assert "is there already; choose another folder" in error_of(capsys, "export", imported[0], "--workdir",
                                                                 imported[1])


@pytest.mark.parametrize(("change", "message"), [
    (lambda f: change_settings(f, rope_parameters={"rope_type": "yarn", "factor": 2}), "rope_type='yarn'"),
    (lambda f: (f / "model.safetensors").write_bytes(b"x" * 40), "is no .safetensors file"),
    (lambda f: f.rename(f.with_name("elsewhere")), "config.json does not exist; give a folder"),
    (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json"),
    (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
    (lambda f: (f / "text.txt").write_bytes(b"\xff"), "is not UTF-8"),
])
def test_nothing_is_left_of_an_import_that_fails(change, message, tmp_path, capsys):
    source = tmp_path / "llama"
    source.mkdir()
    change(with_tokenizer(golden_folder("llama", source)[0]))
    line = error_of(capsys, "import", source, "--workdir", tmp_path / "run", "--data.valid-path", source / "text.txt",
                    "--data.cache-dir", tmp_path / "data")
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path, capsys):
    folder = with_tokenizer(golden_folder("gpt2", tmp_path)[0])
    large = words(bos=False)
    large.add_tokens([f"word{i}" for i in range(20)])
    large.save(str(folder / "tokenizer.json"))
    line = error_of(capsys, "import", folder, "--workdir", tmp_path / "run")
    assert "the tokenizer has 30 tokens, but the model's embedding has 29 rows" in line


def test_special_tokens_inside_a_text_are_ordinary_text_and_a_saved_tokenizer_is_the_same(tmp_path):
    source = with_tokenizer(tmp_path, bos=False)
    tokenizer = tokenizer_of_folder(source)
    assert (tokenizer.eot_id, tokenizer.bos_id, tokenizer.vocab_size) == (1, None, 10)
    assert tokenizer.encode("a</s>b") == [3, 6, 7, 8, 9, 4] and tokenizer.encode_batch(["ab", "b"]) == [[3, 4], [4]]
    assert tokenizer.decode([3, 1, 4]) == "a<|endoftext|>b"
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint() == tokenizer.fingerprint()
    with pytest.raises(DataError, match="token id 10 is beyond the vocabulary"):
        tokenizer.decode([10])
    with pytest.raises(DataError, match="cannot encode a text .*UNK"):
        tokenizer.encode("z")
    (source / "tokenizer_config.json").unlink()
    with pytest.raises(DataError, match="says which token ends a text; give eos_token"):
        tokenizer_of_folder(source)
