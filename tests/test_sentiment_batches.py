"""Batches of labelled texts: every text once an epoch, a pure function of (seed, step), whatever the processes."""

import collections
import json

import numpy as np
import pytest

from jaxablate.data.sentiment.batches import train_batches, validation_batches
from jaxablate.data.sentiment.prepare import EncodedTexts
from jaxablate.data.sentiment.texts import LabelledTexts, held_out, permutation
from jaxablate.data.tokenizer import WordTokenizer
from jaxablate.errors import ConfigError, DataError

PAD = 0
N_TEXTS = 101


def make_split(lengths):
    """Text i is the word ``text-i`` and then fillers, so that a batch shows which texts it has; labels alternate."""
    pairs = [(" ".join([f"text-{i}", *["x"] * (n - 1)]), i % 2) for i, n in enumerate(lengths)]
    words = ["x", *(f"text-{i}" for i in range(len(pairs)))]
    return EncodedTexts.encode(LabelledTexts.from_pairs("made here", pairs), WordTokenizer(words))


FIRST_ID = 3
"""Id of ``text-0``: after padding, unknown and x."""


@pytest.fixture(scope="module")
def split():
    return make_split(np.random.default_rng(0).integers(1, 45, N_TEXTS))


def train(split, *, batch_size=8, max_length=32, bucket_multiple=8, seed=3, **options):
    return train_batches(split, batch_size=batch_size, max_length=max_length, bucket_multiple=bucket_multiple,
                            pad_id=PAD, seed=seed, **{"prefetch": 0} | options)


def evaluate(split, *, batch_size=8, max_length=32, bucket_multiple=8, **options):
    return list(validation_batches(split, batch_size=batch_size, max_length=max_length,
                                   bucket_multiple=bucket_multiple, pad_id=PAD, **options))


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def texts_of(batch):
    return (batch["tokens"][batch["weight"] > 0, 0] - FIRST_ID).tolist()


def check(split, batch, max_length):
    """Every row is its text, cut or padded, with mask, label and weight; fillers come last."""
    texts, length = texts_of(batch), batch["tokens"].shape[1]
    assert {k: v.dtype.name for k, v in batch.items() if k != "index"} == {
        "tokens": "int32", "mask": "float32", "labels": "int32", "weight": "float32"}
    assert batch["weight"].tolist() == [1.0] * len(texts) + [0.0] * (len(batch["weight"]) - len(texts))
    for row, text in enumerate(texts):
        n = min(len(split.row(text)), max_length)
        assert batch["tokens"][row].tolist() == split.row(text)[:n].tolist() + [PAD] * (length - n)
        assert batch["mask"][row].tolist() == [1.0] * n + [0.0] * (length - n)
        assert batch["labels"][row] == text % 2
    assert not batch["mask"][len(texts) :].any()
    assert (batch["tokens"][len(texts) :] == PAD).all()
    assert not batch["labels"][len(texts) :].any()


@pytest.mark.parametrize("bucket_multiple", [0, 1, 7, 8, 32, 100])
@pytest.mark.parametrize("batch_size", [1, 8, 101, 128])
def test_every_text_once_an_epoch_and_fillers_in_one_batch(split, batch_size, bucket_multiple):
    iterator = train(split, batch_size=batch_size, bucket_multiple=bucket_multiple)
    assert iterator.steps_per_epoch == -(-N_TEXTS // batch_size)
    for _ in range(3):
        epoch = take(iterator, iterator.steps_per_epoch)
        assert sorted(text for batch in epoch for text in texts_of(batch)) == list(range(N_TEXTS))
        assert sum(0 in batch["weight"] for batch in epoch) == (N_TEXTS % batch_size > 0)
        for batch in epoch:
            check(split, batch, 32)


@pytest.mark.parametrize(
    ("bucket_multiple", "allowed"), [(0, {32}), (8, {8, 16, 24, 32}), (12, {12, 24, 32}), (64, {32})]
)
def test_lengths_are_multiples_up_to_the_longest(split, bucket_multiple, allowed):
    lengths = collections.Counter(
        batch["tokens"].shape[1] for batch in take(train(split, bucket_multiple=bucket_multiple), 13))
    assert set(lengths) == allowed
    assert {batch["tokens"].shape[1] for batch in evaluate(split, bucket_multiple=bucket_multiple)} <= allowed


def test_texts_of_one_bucket_share_batches_but_for_what_is_left_over(split):
    """At most batch_size - 1 texts of each bucket move up into a longer one."""
    moved = collections.Counter()
    iterator = train(split)
    for batch in take(iterator, iterator.steps_per_epoch):
        for text in texts_of(batch):
            own = min(-(-len(split.row(text)) // 8) * 8, 32)
            assert own <= batch["tokens"].shape[1]
            moved[own] += own < batch["tokens"].shape[1]
    assert moved.total() > 0
    assert max(moved.values()) < 8
    assert moved[32] == 0


def test_one_bucket_after_another_may_be_too_small_for_a_batch():
    few = make_split([3, 9, 17, 25, 30])
    (batch,) = take(train(few), 1)
    assert batch["tokens"].shape == (8, 32)
    assert sorted(texts_of(batch)) == [0, 1, 2, 3, 4]


def test_the_order_changes_with_seed_and_epoch(split):
    def order(seed, start):
        return [text for batch in take(train(split, seed=seed, start_step=start), 13) for text in texts_of(batch)]

    assert order(3, 0) == order(3, 0)
    assert len({tuple(order(*where)) for where in ((3, 0), (4, 0), (3, 13), (3, 26), (-1, 0))}) == 5


def test_batches_of_an_epoch_come_in_random_order(split):
    """Neither by length nor with the filler last, in all of ten epochs."""
    iterator = train(split)
    epochs = [take(iterator, 13) for _ in range(10)]
    lengths = [[batch["tokens"].shape[1] for batch in epoch] for epoch in epochs]
    assert all(found != sorted(found) for found in lengths)
    assert len({tuple(found) for found in lengths}) == 10
    assert len({next(i for i, batch in enumerate(epoch) if 0 in batch["weight"]) for epoch in epochs}) > 3


FROZEN_PERMUTATION = [5, 3, 7, 2, 4, 1, 0, 6]
FROZEN_HELD_OUT = [2, 5, 9, 10]
FROZEN_BATCHES = [[3, 0], [1, 5], [4, 2], [4, 2], [0, 3], [5, 1]]


def test_orders_never_change():
    """Frozen figures: a change here makes every stored run unrepeatable and moves reviews between the splits."""
    assert permutation(0, 1, 0, 8).tolist() == FROZEN_PERMUTATION
    kept, held = held_out(0, 1, 12, 4)
    assert held.tolist() == FROZEN_HELD_OUT
    assert sorted([*kept, *held]) == list(range(12))
    few = make_split([2, 5, 9, 3, 12, 1])
    assert [texts_of(batch) for batch in take(train(few, batch_size=2, seed=7), 6)] == FROZEN_BATCHES


@pytest.mark.parametrize("n", [0, 1, 2, 1000])
def test_permutations(n):
    assert sorted(permutation(5, 6, 7, n).tolist()) == list(range(n))
    assert n < 1000 or len({tuple(permutation(*key, n)) for key in ((5, 6, 7), (4, 6, 7), (5, 5, 7), (5, 6, 8))}) == 4
    assert permutation(-1, 6, 7, n).tolist() == permutation(2**64 - 1, 6, 7, n).tolist()


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_processes_share_out_the_same_batches(split, parts):
    whole, evaluated = take(train(split), 15), evaluate(split)
    options = [{"process_index": p, "process_count": parts} for p in range(parts)]
    shards = [take(train(split, **option), 15) for option in options]
    assert same(whole, [joined(rows) for rows in zip(*shards, strict=True)])
    shards = [evaluate(split, **option) for option in options]
    assert same(evaluated, [joined(rows) for rows in zip(*shards, strict=True)])


def joined(rows):
    return {key: np.concatenate([row[key] for row in rows]) for key in rows[0]}


@pytest.mark.parametrize("start", [1, 5, 13, 14, 40])
def test_starting_at_a_step_is_skipping_to_it(split, start):
    assert same(take(train(split), start + 4)[start:], take(train(split, start_step=start), 4))


@pytest.mark.parametrize("prefetch", [0, 1, 8])
def test_the_cursor_through_json_and_reading_ahead(split, prefetch):
    iterator = train(split, prefetch=prefetch)
    first = take(iterator, 11)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state["step"] == 11
    ahead = take(iterator, 20)
    iterator.set_state(state)
    assert same(ahead, take(iterator, 20))
    iterator.close()
    assert same(first + ahead, take(train(split), 31))


@pytest.mark.parametrize("change", [{"seed": 4}, {"batch_size": 4}, {"bucket_multiple": 0}, {"max_length": 16}])
def test_a_cursor_of_another_order_is_refused(split, change):
    state = train(split, **change).get_state()
    with pytest.raises(DataError, match=f"data cursor has {next(iter(change))}="):
        train(split).set_state(state)


def test_a_cursor_of_other_texts_is_refused(split):
    state = train(make_split([1, 2, 3])).get_state()
    with pytest.raises(DataError, match="data cursor has data_hash="):
        train(split).set_state(state)


@pytest.mark.parametrize("bucket_multiple", [0, 8])
@pytest.mark.parametrize("batch_size", [1, 8, 101, 128])
def test_evaluation_takes_every_text_once_by_length(split, batch_size, bucket_multiple):
    batches = evaluate(split, batch_size=batch_size, bucket_multiple=bucket_multiple)
    assert len(batches) == -(-N_TEXTS // batch_size)
    index = np.concatenate([batch["index"] for batch in batches])
    assert index.dtype == np.int32
    assert (index[N_TEXTS:] == -1).all()
    lengths = np.minimum(split.lengths, 32)
    assert index[:N_TEXTS].tolist() == sorted(range(N_TEXTS), key=lambda i: (lengths[i], i))
    for batch in batches:
        check(split, batch, 32)
        assert texts_of(batch) == batch["index"][batch["weight"] > 0].tolist()
        longest = int(batch["mask"].sum(1).max())
        assert batch["tokens"].shape[1] == (min(-(-longest // 8) * 8, 32) if bucket_multiple else 32)


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 0}, {"max_length": 0}, {"bucket_multiple": -1}, {"process_count": 3}, {"process_count": 0},
     {"process_index": 1}, {"process_index": -1}],
)
def test_arguments_out_of_range_are_refused(split, change):
    for make in (train, evaluate):
        with pytest.raises(ConfigError, match="must"):
            make(split, **change)


@pytest.mark.parametrize("change", [{"start_step": -1}, {"prefetch": -1}])
def test_steps_and_prefetch_are_not_negative(split, change):
    with pytest.raises(ConfigError, match="must not be negative"):
        train(split, **change)


def test_a_split_without_texts_is_refused():
    for make in (train, evaluate):
        with pytest.raises(DataError, match="made here has no texts"):
            make(make_split([]))


def test_encoded_texts_are_rows_labels_and_a_hash_of_both():
    split = make_split([2, 1, 3])
    assert [split.row(i).tolist() for i in range(3)] == [[3, 2], [4], [5, 2, 2]]
    assert (len(split), split.n_tokens, split.lengths.tolist(), split.class_counts()) == (3, 6, [2, 1, 3], (2, 1))
    assert split.texts == ("text-0 x", "text-1", "text-2 x x")

    def hashed(*pairs):
        return EncodedTexts.encode(LabelledTexts.from_pairs("a", pairs), WordTokenizer(["a", "b"])).data_hash

    assert hashed(("a b", 0), ("a", 1)) == hashed(("a  b", 0), ("a", 1))
    others = [[("a", 0), ("b a", 1)], [("a b", 1), ("a", 1)], [("b a", 0), ("a", 1)], [("a b a", 0)]]
    assert len({hashed(("a b", 0), ("a", 1)), *(hashed(*other) for other in others)}) == 5
