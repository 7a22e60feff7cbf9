"""Words and byte pairs: ids, what is shown of them, what is unknown, and what is saved."""

import json

import pytest

from jaxablate.data.sentiment.vocabulary import (
    BytePairVocabulary,
    WordVocabulary,
    gpt2_vocabulary,
    load_vocabulary,
)
from jaxablate.data.tokenizer import train_bpe
from jaxablate.errors import DataError

TEXTS = ["the film is good", "the film , the  film\tis", "bad good\xa0odd"]


@pytest.fixture(scope="module")
def byte_pairs():
    return BytePairVocabulary(train_bpe(TEXTS * 3, 280))


def test_ids_by_falling_count_then_first_occurrence():
    vocabulary = WordVocabulary.of(TEXTS, min_count=1)
    words = ["<PAD>", "<UNK>", "the", "film", "is", "good", ",", "bad", "odd"]
    assert vocabulary.words(range(vocabulary.vocab_size)) == words
    assert (vocabulary.vocab_size, vocabulary.pad_id, vocabulary.unk_id) == (9, 0, 1)
    assert vocabulary.name == "words-9"


@pytest.mark.parametrize(
    ("min_count", "size", "shown"),
    [(1, 9, ["the", "bad", "film"]), (2, 6, ["the", "<UNK>", "film"]), (3, 4, ["the", "<UNK>", "film"]),
     (4, 2, ["<UNK>", "<UNK>", "<UNK>"])],
)
def test_rare_words_are_unknown(min_count, size, shown):
    vocabulary = WordVocabulary.of(TEXTS, min_count)
    assert vocabulary.vocab_size == size
    assert vocabulary.words(vocabulary.encode("the bad film")) == shown


def test_the_words_pad_and_unk_of_a_text_are_no_padding():
    vocabulary = WordVocabulary.of(["<PAD> <UNK> good"])
    assert vocabulary.encode("<PAD> <UNK> good") == [2, 3, 4]
    assert WordVocabulary.of(["good"]).encode("<PAD> good") == [1, 2]


def test_capitals_and_punctuation_make_other_words():
    assert WordVocabulary.of(["Good film."]).encode("Good good film film.") == [2, 1, 1, 3]


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\xa0"])
def test_a_blank_text_is_refused(text, byte_pairs):
    for vocabulary in (WordVocabulary.of(TEXTS), byte_pairs):
        for call in (vocabulary.encode, vocabulary.require_known, lambda t, v=vocabulary: v.encode_batch(["a", t])):
            with pytest.raises(DataError, match="text is empty; give at least one word"):
                call(text)


def test_a_text_of_unknown_words_only_is_refused_where_asked(byte_pairs):
    vocabulary = WordVocabulary.of(TEXTS)
    assert vocabulary.encode("xx yy zz") == [1, 1, 1]
    with pytest.raises(DataError, match="none of the 3 words of the text is among the 7 of the vocabulary") as error:
        vocabulary.require_known("xx yy zz")
    assert "\n" not in str(error.value)
    vocabulary.require_known("xx film zz")
    byte_pairs.require_known("xx yy zz")


@pytest.mark.parametrize("words", [["a", "a"], ["a b"], [""], ["a", " b"]])
def test_what_is_no_vocabulary_is_refused(words):
    with pytest.raises(DataError, match="words of a vocabulary must differ"):
        WordVocabulary(words)


@pytest.mark.parametrize("ids", [[-1], [9], [2, 10**6]])
def test_ids_beyond_the_vocabulary_are_refused(ids):
    with pytest.raises(DataError, match="beyond the vocabulary; ids are 0..8"):
        WordVocabulary.of(TEXTS).words(ids)


def test_the_fingerprint_is_of_the_words_and_their_order():
    fingerprints = [WordVocabulary(words).fingerprint() for words in (["a", "b"], ["b", "a"], ["a"], ["a", "b", "c"])]
    assert len(set(fingerprints)) == 4
    assert WordVocabulary(["a", "b"]).fingerprint() == fingerprints[0]


@pytest.mark.parametrize("words", [["a", "b"], [], ["é", "\u200b", "日本", "a\\n", "%"]])
def test_words_come_back_from_a_folder(tmp_path, words):
    vocabulary = WordVocabulary(words)
    vocabulary.save(tmp_path / "new" / "folder")
    loaded = load_vocabulary(tmp_path / "new" / "folder")
    assert isinstance(loaded, WordVocabulary)
    assert loaded.words(range(loaded.vocab_size)) == ["<PAD>", "<UNK>", *words]
    assert (loaded.name, loaded.fingerprint()) == (vocabulary.name, vocabulary.fingerprint())
    meta = json.loads((tmp_path / "new" / "folder" / "tokenizer_meta.json").read_text())
    assert meta == {"kind": "words", "name": vocabulary.name, "vocab_size": len(words) + 2, "pad_id": 0, "unk_id": 1,
                    "fingerprint": vocabulary.fingerprint()}


def test_byte_pairs_come_back_from_a_folder(tmp_path, byte_pairs):
    byte_pairs.save(tmp_path)
    loaded = load_vocabulary(tmp_path)
    assert isinstance(loaded, BytePairVocabulary)
    assert loaded.fingerprint() == byte_pairs.fingerprint()
    assert loaded.encode("the film, é") == byte_pairs.encode("the film, é")


def test_byte_pairs_show_their_text(byte_pairs):
    assert byte_pairs.unk_id is None
    assert byte_pairs.pad_id == byte_pairs.vocab_size - 1
    ids = byte_pairs.encode("the film is fine")
    assert "".join(byte_pairs.words(ids)) == "the film is fine"
    assert byte_pairs.encode_batch(["the film is fine", "a"])[0] == ids
    assert set(byte_pairs.words(byte_pairs.encode("日"))) == {"\ufffd"}


def test_a_changed_or_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"tokenizer_meta.json cannot be read"):
        load_vocabulary(tmp_path)
    WordVocabulary(["a", "b"]).save(tmp_path)
    (tmp_path / "words.txt").write_text("a\nc\n")
    with pytest.raises(DataError, match=r"has fingerprint \w+, but \w+ was saved"):
        load_vocabulary(tmp_path)
    (tmp_path / "words.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="words.txt cannot be read"):
        load_vocabulary(tmp_path)
    (tmp_path / "words.txt").unlink()
    with pytest.raises(DataError, match="words.txt cannot be read"):
        load_vocabulary(tmp_path)


def test_the_corpus_tokenizer_is_no_vocabulary(tmp_path):
    from jaxablate.data.corpus import CorpusTokenizer

    CorpusTokenizer().save(tmp_path)
    with pytest.raises(DataError, match="tokenizer of kind 'corpus'; classifiers take words or byte pairs"):
        load_vocabulary(tmp_path)


def test_gpt2():
    try:
        vocabulary = gpt2_vocabulary()
    except DataError:
        pytest.skip("GPT-2's vocabulary is neither in TIKTOKEN_CACHE_DIR nor to be had from the network")
    assert (vocabulary.name, vocabulary.vocab_size, vocabulary.pad_id) == ("gpt2", 50257, 50256)
    assert vocabulary.words(vocabulary.encode("The film works")) == ["The", " film", " works"]
