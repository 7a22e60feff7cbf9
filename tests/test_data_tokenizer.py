"""Tokenizers: round trips, the reserved end-of-text id, saving, damage, and agreement with the libraries' own."""

import errno
import json
import os
import time

import pytest

from jaxablate.data import tokenizer as tok
from jaxablate.errors import DataError, FileError

TEXTS = ["Tom and Sue ran to the park. The park was big.", "Sue had a red ball. Tom had a red ball."] * 3
ODD = ["", " ", "It's  12345   \n\n x\t\ty  ", "é漢字🎉\x00\x85\u3000 a", "a<|endoftext|>b", "\r\n"]


@pytest.fixture(scope="module")
def bpe():
    return tok.train_bpe(TEXTS, 290)


@pytest.fixture(scope="module")
def gpt2():
    try:
        return tok.gpt2_tokenizer()
    except DataError:
        pytest.skip("GPT-2's vocabulary is neither in TIKTOKEN_CACHE_DIR nor to be had from the network")


def test_bpe_has_the_size_asked_for_and_end_of_text_last(bpe):
    assert (bpe.vocab_size, bpe.eot_id, bpe.name) == (290, 289, "bpe-290")
    assert isinstance(bpe, tok.Tokenizer)


@pytest.mark.parametrize("text", TEXTS[:2] + ODD)
def test_bpe_gives_any_text_back_and_never_makes_end_of_text(bpe, text):
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert all(0 <= i < bpe.eot_id for i in ids)
    assert bpe.encode_batch([text]) == [ids]


def test_merges_make_text_shorter(bpe):
    assert len(bpe.encode(TEXTS[0])) < len(TEXTS[0]) - 10


def test_bpe_encodes_as_the_library_that_trained_it():
    import tokenizers

    texts = [f"{a} {b}ed the {c}s and {b}s a {c}er {a}" for a in ("Lily", "Max") for b in ("jump", "walk")
             for c in ("park", "ball", "bark")]
    ours = tok.train_bpe(texts, 330)
    theirs = tokenizers.Tokenizer(tokenizers.models.BPE())
    theirs.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    theirs.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=329, min_frequency=2, initial_alphabet=alphabet, show_progress=False))
    for text in [*texts, "a parked jumper", "It's é  \n x"]:
        assert ours.encode(text) == theirs.encode(text).ids


def test_same_text_trains_the_same_tokenizer(bpe):
    assert tok.train_bpe(iter(TEXTS), 290).fingerprint() == bpe.fingerprint()
    assert tok.train_bpe(TEXTS, 280).fingerprint() != bpe.fingerprint()


LONG = {"line ends": "A" + "\n" * 400_000 + "B", "one word": "ab" * 200_000, "words": "Tom has a ball. " * 25_000}


@pytest.mark.parametrize("kind", LONG)
def test_training_takes_time_linear_in_the_longest_word(kind):
    """A story with a run of 400,000 line ends took 43 s to train on, and four times as long for twice as many."""
    start = time.process_time()
    trained = tok.train_bpe([LONG[kind], *TEXTS], 290)
    assert time.process_time() - start < 5
    assert trained.decode(trained.encode(LONG[kind])) == LONG[kind]


def test_long_words_do_not_change_what_ordinary_ones_teach():
    """The vocabulary of ordinary text is the one that the library alone gives it."""
    words = ["x" * tok._LONGEST_TRAINING_WORD, " " * (tok._LONGEST_TRAINING_WORD - 1)]
    assert tok.train_bpe([*TEXTS, *words], 290).fingerprint() == _as_the_library_trains([*TEXTS, *words], 290)


def _as_the_library_trains(texts, vocab_size):
    import tokenizers

    trained = tokenizers.Tokenizer(tokenizers.models.BPE())
    trained.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trained.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size - 1, min_frequency=2, initial_alphabet=alphabet, show_progress=False))
    byte_of = tok._byte_of_character()
    ranks = {bytes(byte_of[c] for c in token): rank for token, rank in trained.get_vocab().items()}
    return tok.BytePairTokenizer("library", ranks).fingerprint()


@pytest.mark.parametrize("blank", [" ", "\n", "\u3000"])
def test_a_million_blanks_in_a_row_are_encoded(bpe, blank):
    """tiktoken's regular expression panics at a run of 999,999, with an exception that is no `Exception`."""
    text = "A" + blank * 1_100_000 + "B"
    ids = bpe.encode(text)
    assert bpe.decode(ids) == text
    assert bpe.encode_batch([TEXTS[0], text]) == [bpe.encode(TEXTS[0]), ids]


@pytest.mark.parametrize("text", ["A" + " " * 500_000 + "B", "ab" * 300_000, "Tom ran.  \n" * 60_000])
def test_texts_without_such_a_run_are_encoded_whole(bpe, text):
    assert bpe.encode(text) == bpe._encoding.encode_ordinary(text)


def test_little_text_gives_a_smaller_vocabulary():
    assert tok.train_bpe(["ab"], 1000).vocab_size == 257


@pytest.mark.parametrize("size", [256, 10**12])
def test_a_vocabulary_without_room_for_the_bytes_or_of_any_size_is_refused(size):
    with pytest.raises(DataError, match=f"bpe_vocab_size={size} must be at least 257 .* and at most 1048576"):
        tok.train_bpe(TEXTS, size)


def test_end_of_text_is_decoded_by_name(bpe):
    assert bpe.decode([bpe.eot_id]) == "<|endoftext|>"


@pytest.mark.parametrize("bad", [290, -1])
def test_an_id_beyond_the_vocabulary_is_named(bpe, bad):
    with pytest.raises(DataError, match=rf"token id {bad} is beyond the vocabulary; ids are 0\.\.289"):
        bpe.decode([1, bad])


def test_saved_and_loaded(bpe, tmp_path):
    bpe.save(tmp_path / "new" / "folder")
    loaded = tok.load_tokenizer(tmp_path / "new" / "folder")
    assert loaded.fingerprint() == bpe.fingerprint()
    assert (loaded.name, loaded.vocab_size, loaded.eot_id) == (bpe.name, bpe.vocab_size, bpe.eot_id)
    assert loaded.encode_batch(TEXTS) == bpe.encode_batch(TEXTS)


def test_corpus_tokenizer_saved_and_loaded(tmp_path):
    from jaxablate.data.corpus import CorpusTokenizer

    CorpusTokenizer().save(tmp_path)
    assert isinstance(tok.load_tokenizer(tmp_path), CorpusTokenizer)


def opened_by_tokenizers(tokenizer, folder):
    """What the library makes of the folder of a saved tokenizer."""
    import tokenizers

    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["eos_token"] == config["bos_token"] == config["unk_token"] == "<|endoftext|>"
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert theirs.get_vocab_size() == tokenizer.vocab_size
    assert theirs.token_to_id("<|endoftext|>") == tokenizer.eot_id
    return theirs


MANY = [*TEXTS, *(text for text in ODD if "endoftext" not in text), "don't we'll 'S it's\u00a0x",
        "aaaaa aaaaaaaaaaaa\n\n\n", " 1234567890 12,345.67 \u0661\u00b2\u2155",
        "\u0130\u0131 \ufb01 \u0e33 \u1e9e \U0001f468\u200d\U0001f469 \ud7ff \ue000"]


@pytest.mark.parametrize("size", [257, 290, 320])
def test_the_library_tokenizers_opens_a_saved_bpe(tmp_path, size):
    ours = tok.train_bpe([*TEXTS, "aaaaa aaaa aaaaaaa aaa aaaaaaaaa aaaaaaaaa", *MANY], size)
    ours.save(tmp_path)
    theirs = opened_by_tokenizers(ours, tmp_path)
    for text in MANY:
        assert theirs.encode(text).ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    # Ordinary text here, the special token there, as with GPT-2's own files.
    assert theirs.encode("a<|endoftext|>").ids == [*ours.encode("a"), ours.eot_id] != ours.encode("a<|endoftext|>")


@pytest.fixture(scope="module")
def gpt2_folder(gpt2, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    gpt2.save(folder)
    return folder


def test_the_library_tokenizers_opens_a_saved_gpt2(gpt2, gpt2_folder):
    theirs = opened_by_tokenizers(gpt2, gpt2_folder)
    assert [encoding.ids for encoding in theirs.encode_batch(MANY)] == gpt2.encode_batch(MANY)
    merges = json.loads((gpt2_folder / "tokenizer.json").read_text())["model"]["merges"]
    assert merges[:3] == [["\u0120", "t"], ["\u0120", "a"], ["h", "e"]] and len(merges) == 50000


def test_the_library_tokenizers_opens_the_corpuss_words(tmp_path):
    from jaxablate.data.corpus import CorpusTokenizer, story

    ours = CorpusTokenizer()
    ours.save(tmp_path)
    theirs = opened_by_tokenizers(ours, tmp_path)
    for text in ("", *(story(0, i).text for i in range(50))):
        assert theirs.encode(text).ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    for unknown, ids in (("Then, Zebulon", 3), ("Then; Rob", 3), ("a", 1)):
        found = theirs.encode(unknown).ids  # refused here; programs try a tokenizer on texts of their own
        assert len(found) == ids and found.count(ours.eot_id) == 1


def test_merges_are_those_that_were_learned():
    assert tok.train_bpe(["abab abab"], 259).merges() == [(b"a", b"b"), (b"ab", b"ab")]


def test_ranks_that_no_merging_makes_are_refused(tmp_path):
    ranks = {bytes([i]): i for i in range(256)} | {b"abc": 256}
    with pytest.raises(DataError, match="token 256 of tokenizer odd, b'abc', is not made of two earlier ones"):
        tok.BytePairTokenizer("odd", ranks).save(tmp_path)
    assert not list(tmp_path.iterdir())


def _swap_ranks(folder):
    path = folder / tok.RANKS_FILE
    lines = path.read_text().splitlines()
    a, b = lines[-1].split(), lines[-2].split()
    path.write_text("\n".join([*lines[:-2], f"{a[0]} {b[1]}", f"{b[0]} {a[1]}"]) + "\n")


def _change_meta(folder, **fields):
    meta = json.loads((folder / tok.META_FILE).read_text())
    (folder / tok.META_FILE).write_text(json.dumps(meta | fields))


def _pipe(path):
    path.unlink()
    os.mkfifo(path)  # opening it would wait for a writer


DAMAGE = {
    "missing ranks": (lambda f: (f / tok.RANKS_FILE).unlink(), "cannot be read"),
    "truncated ranks": (lambda f: (f / tok.RANKS_FILE).write_text((f / tok.RANKS_FILE).read_text()[:999]), "rank"),
    "binary ranks": (lambda f: (f / tok.RANKS_FILE).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "swapped ranks": (_swap_ranks, "fingerprint"),
    "missing metadata": (lambda f: (f / tok.META_FILE).unlink(), "cannot be read"),
    "damaged metadata": (lambda f: (f / tok.META_FILE).write_text('{"kind": "bpe"'), "cannot be read"),
    "metadata of another form": (lambda f: (f / tok.META_FILE).write_text("[]"), "is not a tokenizer's metadata"),
    "metadata of less": (lambda f: (f / tok.META_FILE).write_text('{"kind": "bpe"}'), "missing required field `name`"),
    "metadata too deep": (lambda f: (f / tok.META_FILE).write_text("[" * 100_000), "nested too deep"),
    "a fingerprint that is a number": (lambda f: _change_meta(f, fingerprint=5), r"Expected `str`.*\$.fingerprint"),
    "another fingerprint": (lambda f: _change_meta(f, fingerprint="[/b]"), "fingerprint"),
    "a pipe of ranks": (lambda f: _pipe(f / tok.RANKS_FILE), "not a file"),
    "a rank of many digits": (lambda f: (f / tok.RANKS_FILE).write_text(f"IQ== {'1' * 5000}"), "rank"),
    "unknown kind": (lambda f: _change_meta(f, kind="letters"), "has kind 'letters'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_one_clear_error(bpe, tmp_path, damage):
    change, message = DAMAGE[damage]
    bpe.save(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        tok.load_tokenizer(tmp_path)


@pytest.mark.parametrize("make", [lambda: tok.train_bpe(TEXTS, 290), lambda: tok.WordTokenizer(["a", "b"])])
def test_a_full_disk_while_saving_is_one_error_and_leaves_nothing(tmp_path, monkeypatch, make):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FileError, match="disk full while writing"):
        make().save(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_gpt2_agrees_with_tiktoken(gpt2):
    import tiktoken

    reference = tiktoken.get_encoding("gpt2")
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)
    assert gpt2.encode_batch(TEXTS + ODD) == reference.encode_ordinary_batch(TEXTS + ODD)
    assert gpt2.encode("Then, Rob and Sue") == [6423, 11, 3851, 290, 26089]


def test_gpt2_is_loaded_back_without_the_cache(gpt2, gpt2_folder, monkeypatch):
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: pytest.fail("the folder is enough"))
    assert tok.load_tokenizer(gpt2_folder).fingerprint() == gpt2.fingerprint()


def test_missing_gpt2_files_name_the_variable(monkeypatch):
    def refuse(name):
        raise ConnectionError("no network")

    monkeypatch.setattr("tiktoken.get_encoding", refuse)
    with pytest.raises(DataError, match="TIKTOKEN_CACHE_DIR"):
        tok.gpt2_tokenizer()
