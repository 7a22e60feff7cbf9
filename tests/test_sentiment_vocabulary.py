"""Tokenizer of white-space words: ids, what is unknown, and what is saved."""

import json

import pytest

from jaxablate.data.tokenizer import Tokenizer, WordTokenizer, load_tokenizer
from jaxablate.errors import DataError

TEXTS = ["the film is good", "the film , the  film\tis", "bad good\xa0odd"]


def test_ids_by_falling_count_then_first_occurrence():
    tokenizer = WordTokenizer.from_texts(TEXTS, min_count=1)
    assert tokenizer.decode(range(tokenizer.vocab_size)) == "<PAD> <UNK> the film is good , bad odd"
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.unk_id) == (9, 0, 1)
    assert tokenizer.name == "words-9" and isinstance(tokenizer, Tokenizer)


@pytest.mark.parametrize(("min_count", "size", "shown"), [
    (1, 9, "the bad film"), (2, 6, "the <UNK> film"), (3, 4, "the <UNK> film"), (4, 2, "<UNK> <UNK> <UNK>")])
def test_rare_words_are_unknown(min_count, size, shown):
    tokenizer = WordTokenizer.from_texts(TEXTS, min_count)
    assert tokenizer.vocab_size == size
    assert tokenizer.decode(tokenizer.encode("the bad film")) == shown


def test_the_words_pad_and_unk_of_a_text_are_no_padding():
    tokenizer = WordTokenizer.from_texts(["<PAD> <UNK> good"])
    assert tokenizer.encode("<PAD> <UNK> good") == [2, 3, 4]
    assert WordTokenizer.from_texts(["good"]).encode("<PAD> good") == [1, 2]


def test_capitals_and_punctuation_make_other_words():
    assert WordTokenizer.from_texts(["Good film."]).encode("Good good film film.") == [2, 1, 1, 3]


@pytest.mark.parametrize("words", [["a", "a"], ["a b"], [""], ["a", " b"]])
def test_what_is_no_vocabulary_is_refused(words):
    with pytest.raises(DataError, match="must differ"):
        WordTokenizer(words)


@pytest.mark.parametrize("ids", [[-1], [9], [2, 10**6]])
def test_ids_beyond_the_vocabulary_are_refused(ids):
    with pytest.raises(DataError, match="beyond the vocabulary"):
        WordTokenizer.from_texts(TEXTS).decode(ids)


def test_the_fingerprint_is_of_the_words_and_their_order():
    fingerprints = [WordTokenizer(words).fingerprint() for words in (["a", "b"], ["b", "a"], ["a"], ["a", "b", "c"])]
    assert len(set(fingerprints)) == 4
    assert WordTokenizer(["a", "b"]).fingerprint() == fingerprints[0]


@pytest.mark.parametrize("words", [["a", "b"], [], ["é", "\u200b", "日本", "a\\n", "%"]])
def test_words_come_back_from_a_folder(tmp_path, words):
    tokenizer = WordTokenizer(words)
    tokenizer.save(tmp_path / "new" / "folder")
    loaded = load_tokenizer(tmp_path / "new" / "folder")
    assert isinstance(loaded, WordTokenizer)
    assert loaded.decode(range(loaded.vocab_size)) == " ".join(["<PAD>", "<UNK>", *words])
    assert (loaded.name, loaded.fingerprint()) == (tokenizer.name, tokenizer.fingerprint())


def test_a_folder_of_version_0_1_is_read(tmp_path):
    (tmp_path / "words.txt").write_text("a\nb\n")
    meta = {"kind": "words", "name": "words-4", "vocab_size": 4, "pad_id": 0, "unk_id": 1,
            "fingerprint": WordTokenizer(["a", "b"]).fingerprint()}
    (tmp_path / "tokenizer_meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    assert load_tokenizer(tmp_path).encode("b a c") == [3, 2, 1]


def test_a_changed_or_missing_file_is_refused(tmp_path):
    WordTokenizer(["a", "b"]).save(tmp_path)
    (tmp_path / "words.txt").write_text("a\nc\n")
    with pytest.raises(DataError, match="fingerprint"):
        load_tokenizer(tmp_path)
    (tmp_path / "words.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="words.txt cannot be read"):
        load_tokenizer(tmp_path)
    (tmp_path / "words.txt").unlink()
    with pytest.raises(DataError, match="words.txt cannot be read"):
        load_tokenizer(tmp_path)
