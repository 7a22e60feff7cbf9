"""Tokenizers: round trips, the reserved end-of-text id, saving, damage, and agreement with the libraries' own."""

import json

import pytest

from jaxablate.data import tokenizer as tok
from jaxablate.errors import DataError

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


def test_little_text_gives_a_smaller_vocabulary():
    assert tok.train_bpe(["ab"], 1000).vocab_size == 257


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(DataError, match="bpe_vocab_size=256 must be at least 257"):
        tok.train_bpe(TEXTS, 256)


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


def _swap_ranks(folder):
    path = folder / tok.RANKS_FILE
    lines = path.read_text().splitlines()
    a, b = lines[-1].split(), lines[-2].split()
    path.write_text("\n".join([*lines[:-2], f"{a[0]} {b[1]}", f"{b[0]} {a[1]}"]) + "\n")


def _unknown_kind(folder):
    meta = json.loads((folder / tok.META_FILE).read_text())
    (folder / tok.META_FILE).write_text(json.dumps(meta | {"kind": "letters"}))


DAMAGE = {
    "missing ranks": (lambda f: (f / tok.RANKS_FILE).unlink(), "cannot be read"),
    "truncated ranks": (lambda f: (f / tok.RANKS_FILE).write_text((f / tok.RANKS_FILE).read_text()[:999]), "rank"),
    "binary ranks": (lambda f: (f / tok.RANKS_FILE).write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "swapped ranks": (_swap_ranks, "fingerprint"),
    "missing metadata": (lambda f: (f / tok.META_FILE).unlink(), "cannot be read"),
    "damaged metadata": (lambda f: (f / tok.META_FILE).write_text('{"kind": "bpe"'), "cannot be read"),
    "metadata of another form": (lambda f: (f / tok.META_FILE).write_text("[]"), "is not a tokenizer's metadata"),
    "metadata of less": (lambda f: (f / tok.META_FILE).write_text('{"kind": "bpe"}'), "'name' is missing"),
    "unknown kind": (_unknown_kind, "has kind 'letters'"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_folder_is_one_clear_error(bpe, tmp_path, damage):
    change, message = DAMAGE[damage]
    bpe.save(tmp_path)
    change(tmp_path)
    with pytest.raises(DataError, match=message):
        tok.load_tokenizer(tmp_path)


def test_gpt2_agrees_with_tiktoken(gpt2):
    import tiktoken

    reference = tiktoken.get_encoding("gpt2")
    assert (gpt2.vocab_size, gpt2.eot_id) == (50257, 50256)
    assert gpt2.encode_batch(TEXTS + ODD) == reference.encode_ordinary_batch(TEXTS + ODD)
    assert gpt2.encode("Then, Rob and Sue") == [6423, 11, 3851, 290, 26089]


def test_gpt2_is_loaded_back_without_the_cache(gpt2, tmp_path, monkeypatch):
    gpt2.save(tmp_path)
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: pytest.fail("the folder is enough"))
    assert tok.load_tokenizer(tmp_path).fingerprint() == gpt2.fingerprint()


def test_missing_gpt2_files_name_the_variable(monkeypatch):
    def refuse(name):
        raise ConnectionError("no network")

    monkeypatch.setattr("tiktoken.get_encoding", refuse)
    with pytest.raises(DataError, match="TIKTOKEN_CACHE_DIR"):
        tok.gpt2_tokenizer()
