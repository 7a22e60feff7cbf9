"""From a config to encoded splits, the downloads behind it, and the command line."""

import io
import types
import zipfile

import numpy as np
import pytest

from jaxablate.config import SentimentDataConfig
from jaxablate.data import __main__ as cli
from jaxablate.data import download
from jaxablate.data.sentiment import sst
from jaxablate.data.sentiment.imdb import download_imdb
from jaxablate.data.sentiment.prepare import EncodedTexts, prepare
from jaxablate.data.sentiment.sst import TREE_FILES, download_trees
from jaxablate.data.sentiment.texts import LabelledTexts
from jaxablate.data.tokenizer import WordTokenizer
from jaxablate.errors import DataError

TREES = {
    "train.txt": "(3 (2 good) (2 film))\n(1 (2 bad) (2 film))\n(4 (2 good) (2 one))\n(2 so)\n",
    "dev.txt": "(3 good)\n(1 bad)\n",
    "test.txt": "(4 (2 new) (2 words))\n(0 (2 bad) (2 words))\n",
}


@pytest.fixture
def trees(tmp_path):
    folder = tmp_path / "here"
    folder.mkdir()
    for name, text in TREES.items():
        (folder / name).write_text(text)
    return folder


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as packed:
        for name, text in files.items():
            packed.writestr(name, text)
    return path.as_uri()


def visible(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.suffix != ".lock")


def test_the_vocabulary_is_of_the_balanced_training_split_alone(trees):
    data = prepare(SentimentDataConfig(path=str(trees), min_count=1))
    assert list(data.splits) == ["train", "dev", "test"]
    assert data.tokenizer.decode(range(data.tokenizer.vocab_size)) == "<PAD> <UNK> film good bad"
    assert data.splits["train"].row(0).tolist() == [3, 2]
    assert data.splits["test"].texts == ("new words", "bad words")
    assert data.splits["test"].tokens.tolist() == [1, 1, 4, 1]
    assert data.splits["test"].tokens.dtype == data.splits["test"].labels.dtype == np.int32
    whole = prepare(SentimentDataConfig(path=str(trees), min_count=1, balance=False))
    assert whole.tokenizer.vocab_size == 6
    assert prepare(SentimentDataConfig(path=str(trees))).tokenizer.vocab_size == 3


def test_the_same_config_gives_the_same_hashes(trees):
    first, second, other = (
        prepare(SentimentDataConfig(path=str(trees), min_count=count)) for count in (1, 1, 2)
    )
    hashes = [{name: split.data_hash for name, split in data.splits.items()} for data in (first, second, other)]
    assert hashes[0] == hashes[1]
    assert hashes[0]["train"] != hashes[2]["train"]
    assert first.tokenizer.fingerprint() == second.tokenizer.fingerprint()


def test_without_a_path_the_cache_folder_serves(trees):
    trees.rename(trees.parent / "trees")
    data = prepare(SentimentDataConfig(cache_dir=str(trees.parent), min_count=1))
    assert len(data.splits["train"]) == 2


def test_the_trees_are_downloaded_unpacked_and_used(tmp_path, monkeypatch):
    others = {"trees/": "", "../evil.txt": "evil", "/absolute.txt": "evil", "trees/README": "about"}
    url = zipped(tmp_path / "served.zip", others | {f"trees/{name}": text for name, text in TREES.items()})
    cache = tmp_path / "cache"
    folder = download_trees(cache, url=url)
    expected = ["trainDevTestTrees_PTB.zip", *(f"trees/{name}" for name in sorted(TREE_FILES))]
    assert visible(cache) == expected
    assert {name: (folder / name).read_text() for name in TREE_FILES} == TREES
    assert visible(tmp_path) == [*(f"cache/{name}" for name in expected), "served.zip"]
    (tmp_path / "served.zip").unlink()
    assert download_trees(cache, url=url) == folder
    (folder / "dev.txt").unlink()
    assert download_trees(cache, url=url) == folder
    assert visible(cache) == expected
    monkeypatch.setattr(download, "_open", no_network)
    assert len(prepare(SentimentDataConfig(cache_dir=str(cache))).splits["dev"]) == 2


def no_network(address):
    raise ConnectionError("no network in this test")


def test_a_download_that_is_no_archive_of_trees_is_refused(tmp_path):
    for number, files in enumerate([{"trees/train.txt": "(3 good)"}, {"train.txt": "", "dev.txt": "", "test.txt": ""}]):
        url = zipped(tmp_path / "served.zip", files)
        with pytest.raises(DataError, match="is no archive of the trees") as error:
            download_trees(tmp_path / str(number), url=url)
        assert "\n" not in str(error.value)
        assert visible(tmp_path / str(number)) == ["trainDevTestTrees_PTB.zip"]
    (tmp_path / "served.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match="is no archive of the trees"):
        download_trees(tmp_path / "html", url=(tmp_path / "served.zip").as_uri())


def _field(central, local, value):
    """A change of a number of two bytes in the first file's headers of a zip archive."""
    def change(content):
        for signature, at in ((b"PK\1\2", central), (b"PK\3\4", local)):
            start = content.index(signature) + at
            content = content[:start] + value + content[start + 2 :]
        return content
    return change


BAD_ZIPS = {
    "encrypted": _field(8, 6, b"\1\0"),
    "an unknown compression": _field(10, 8, b"\x63\0"),
    "another compression": _field(10, 8, b"\x0e\0"),
    "damaged data": lambda content: content[:50] + b"\xff" * 20 + content[70:],
    "half": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("kind", BAD_ZIPS)
def test_a_damaged_zip_is_one_error_whatever_the_library_makes_of_it(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "served.zip", "w", zipfile.ZIP_DEFLATED) as packed:
        for name, text in TREES.items():
            packed.writestr(f"trees/{name}", text * 9)
    (tmp_path / "served.zip").write_bytes(BAD_ZIPS[kind]((tmp_path / "served.zip").read_bytes()))
    with pytest.raises(DataError, match="is no archive of the trees") as error:
        download_trees(tmp_path / "cache", url=(tmp_path / "served.zip").as_uri())
    assert "\n" not in str(error.value)


def test_texts_encoded_in_parts_are_the_same(monkeypatch):
    """So that the ids of many texts, which are larger as Python's numbers, are never there all at once."""
    from jaxablate.data.sentiment import prepare as module

    split, tokenizer = LabelledTexts.from_pairs("mine", [("a b", 0), ("b", 1), ("c a a", 1)]), WordTokenizer("ab")
    whole = EncodedTexts.encode(split, tokenizer)
    monkeypatch.setattr(module, "_ENCODE_CHARACTERS", 1)
    parts = EncodedTexts.encode(split, tokenizer)
    assert parts.data_hash == whole.data_hash
    assert parts.tokens.tolist() == whole.tokens.tolist() == [2, 3, 3, 1, 2, 2]


def test_a_huge_file_of_the_zip_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(sst, "_LARGEST_TREE_FILE", 20)
    url = zipped(tmp_path / "served.zip", {f"trees/{name}": text for name, text in TREES.items()})
    with pytest.raises(DataError, match="has train.txt of over 20 bytes"):
        download_trees(tmp_path / "cache", url=url)


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("sst2", ["https://nlp.stanford.edu/sentiment/trainDevTestTrees_PTB.zip", "unpack it so that"]),
        ("imdb", ["https://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz", "give data.path the archive"]),
    ],
)
def test_without_a_network_one_line_says_what_to_fetch(tmp_path, monkeypatch, capsys, source, parts):
    monkeypatch.setattr(download, "_open", no_network)
    arguments = ["--source", source, "--cache-dir", str(tmp_path)]
    assert cli.main(["sentiment", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(part in error for part in [*parts, "no network in this test", f"put it at {tmp_path}"])
    assert visible(tmp_path) == []
    assert cli.main(["download-sentiment", source, "--cache-dir", str(tmp_path)]) == 2


def test_reviews_are_downloaded_whole_and_stay_packed(tmp_path):
    (tmp_path / "served").write_bytes(b"archive")
    path = download_imdb(tmp_path / "cache", url=(tmp_path / "served").as_uri())
    assert (path.name, path.read_bytes()) == ("aclImdb_v1.tar.gz", b"archive")
    (tmp_path / "served").unlink()
    assert download_imdb(tmp_path / "cache", url=(tmp_path / "served").as_uri()) == path


@pytest.mark.parametrize("length", ["many", "-4", "1" * 5000, ""])
def test_a_length_that_is_no_number_is_no_length(tmp_path, monkeypatch, length):
    class Answer(io.BytesIO):
        headers = types.MappingProxyType({"Content-Length": length})

    monkeypatch.setattr(download, "_open", lambda address: Answer(b"whole"))
    assert download_imdb(tmp_path).read_bytes() == b"whole"


def test_half_a_download_leaves_nothing(tmp_path, monkeypatch):
    class Half(io.BytesIO):
        headers = types.MappingProxyType({"Content-Length": "100"})

    monkeypatch.setattr(download, "_open", lambda address: Half(b"half"))
    with pytest.raises(DataError, match="ended after 4 of 100 bytes; run again"):
        download_imdb(tmp_path)
    assert visible(tmp_path) == []


def test_the_command_line_prints_what_there_is(trees, capsys):
    assert cli.main(["sentiment", "--path", str(trees), "--min-count", "1"]) == 0
    printed = capsys.readouterr().out
    assert "tokenizer words-5: 5 ids" in printed
    assert "train:      2 texts (1 negative, 1 positive; 1 more left out to balance the classes), 2.0 tokens" in printed
    assert "test:      2 texts" in printed


def test_the_command_line_refuses_on_one_line(trees, capsys):
    (trees / "dev.txt").write_text("(3 good)\n(9 bad)\n")
    assert cli.main(["sentiment", "--path", str(trees)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"error: {trees / 'dev.txt'}:2: no tree of (label word) and (label node node ...) with labels 0..4; "
        "mend this line or fetch the set again\n")


@pytest.mark.parametrize("source", ["sst2", "imdb"])
def test_a_path_that_does_not_exist_is_said_to_be_missing(source):
    with pytest.raises(DataError, match="data.path='/nonexistent' does not exist"):
        prepare(SentimentDataConfig(source=source, path="/nonexistent"))


def test_byte_pairs_where_asked(trees, monkeypatch):
    from jaxablate.data.sentiment import prepare as module
    from jaxablate.data.tokenizer import train_bpe

    monkeypatch.setattr(module, "gpt2_tokenizer", lambda: train_bpe(["good film"] * 3, 260))
    data = prepare(SentimentDataConfig(path=str(trees), vocabulary="gpt2"))
    assert data.tokenizer.pad_id == data.tokenizer.vocab_size - 1
    for split in data.splits.values():
        for index, text in enumerate(split.texts):
            assert data.tokenizer.decode(split.row(index)) == text


def test_a_blank_text_is_refused():
    with pytest.raises(DataError, match="text 1 of mine is empty"):
        EncodedTexts.encode(LabelledTexts.from_pairs("mine", [("a", 0), (" ", 1)]), WordTokenizer(["a"]))
