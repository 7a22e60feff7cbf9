"""Batches: a pure function of (seed, step, row), whatever the processes, restarts and read-ahead."""

import itertools
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from scipy import stats

from jaxablate.data.pipeline import train_batches, validation_batch_count, validation_batches, window_offsets
from jaxablate.data.token_file import SourceRecord, open_token_file, write_token_file
from jaxablate.errors import ConfigError, DataError

SOURCE = SourceRecord(name="a", size=1, mtime_ns=1, sha256="0" * 64)


class Ids:
    name, pad_id, unk_id = "ids", 0, None
    encode = encode_batch = decode = save = None

    def __init__(self, vocab_size):
        self.vocab_size, self.eot_id = vocab_size, vocab_size - 1

    def fingerprint(self):
        return "ef" * 32


def make_file(path, n_tokens, vocab_size=60000, first=0):
    """A file whose token i is first + i, so that a window shows where it was taken; one story."""
    write_token_file(path, [[list(range(first, first + n_tokens - 1))]], Ids(vocab_size), SOURCE)
    return open_token_file(path)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return make_file(tmp_path_factory.mktemp("data") / "a.tokens", 5000)


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def batches(file, *, batch_size=8, sequence_length=16, seed=3, **options):
    return train_batches(file, batch_size=batch_size, sequence_length=sequence_length, seed=seed, **options)


def test_shapes_types_and_targets_one_token_on(file):
    batch = next(batches(file))
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "inputs": ((8, 16), np.dtype(np.int32)), "targets": ((8, 16), np.dtype(np.int32))}
    assert all(v.flags.c_contiguous for v in batch.values())
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    np.testing.assert_array_equal(batch["inputs"], batch["inputs"][:, :1] + np.arange(16))


def test_windows_are_where_the_offsets_say(file):
    for step, batch in enumerate(take(batches(file), 3)):
        np.testing.assert_array_equal(batch["inputs"][:, 0], window_offsets(3, step, 8, 5000 - 16))


def test_offsets_never_change():
    """Frozen figures of this order: a change here makes every stored run unrepeatable."""
    assert window_offsets(0, 0, 4, 10**9).tolist() == [266679968, 196211090, 562108232, 682939543]
    assert window_offsets(7, 123456, 4, 10**9).tolist() == [557139959, 804368259, 759010455, 235133660]


def test_offsets_are_philox_words_of_key_and_counter():
    key = np.array([5, 0x6A61786162], np.uint64)
    words = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 9, 0])).bit_generator.random_raw(6)
    assert window_offsets(5, 9, 6, 777).tolist() == [int(w) % 777 for w in words]


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_processes_share_out_the_same_global_batch(file, parts):
    whole = take(batches(file), 3)
    shards = [take(batches(file, process_index=p, process_count=parts), 3) for p in range(parts)]
    joined = [{k: np.concatenate([shard[s][k] for shard in shards]) for k in whole[s]} for s in range(3)]
    assert same(whole, joined)


def test_a_larger_batch_starts_with_the_rows_of_a_smaller_one(file):
    small, large = next(batches(file, batch_size=4)), next(batches(file, batch_size=32))
    np.testing.assert_array_equal(small["inputs"], large["inputs"][:4])


def test_starting_at_a_step_is_skipping_to_it(file):
    assert same(take(batches(file), 9)[5:], take(batches(file, start_step=5), 4))


@pytest.mark.parametrize("prefetch", [0, 1, 8])
def test_reading_ahead_changes_nothing(file, prefetch):
    iterator = batches(file, prefetch=prefetch)
    assert same(take(iterator, 6), take(batches(file), 6))
    iterator.close()


@pytest.mark.parametrize("prefetch", [0, 4])
def test_cursor_round_trip_through_json(file, prefetch):
    iterator = batches(file, prefetch=prefetch)
    take(iterator, 3)
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"step": 3, "seed": 3, "data_hash": file.data_hash}
    ahead = take(iterator, 4)
    iterator.set_state(state)
    assert same(ahead, take(iterator, 4))
    other = batches(file, prefetch=prefetch, process_index=1, process_count=2)
    other.set_state(state)
    np.testing.assert_array_equal(next(other)["inputs"], ahead[0]["inputs"][4:])
    assert other.get_state()["step"] == 4


@pytest.mark.parametrize(("name", "value"), [("seed", 4), ("data_hash", "00")])
def test_a_cursor_of_another_order_is_refused(file, name, value):
    iterator = batches(file)
    with pytest.raises(DataError, match=f"data cursor has {name}={value}"):
        iterator.set_state(iterator.get_state() | {name: value})
    assert same(take(iterator, 2), take(batches(file), 2))


def test_seeds_steps_and_rows_all_differ():
    drawn = {(seed, step): window_offsets(seed, step, 64, 2**40).tolist() for seed in range(20) for step in range(20)}
    values = [v for row in drawn.values() for v in row]
    assert len(set(values)) == len(values)


def test_negative_and_huge_seeds_are_seeds():
    assert len({tuple(window_offsets(s, 0, 4, 2**40)) for s in (-1, 0, 1, 2**63, 2**64 - 2)}) == 5


def test_offsets_are_uniform_and_reach_both_ends():
    offsets = np.concatenate([window_offsets(1, step, 32, 50) for step in range(2000)])
    assert (offsets.min(), offsets.max()) == (0, 49)
    assert stats.chisquare(np.bincount(offsets, minlength=50)).pvalue > 1e-3
    large = np.concatenate([window_offsets(2, step, 32, 470_000_000) for step in range(1000)]) / 470_000_000
    assert stats.kstest(large, "uniform").pvalue > 1e-3


def test_rows_of_a_step_are_not_correlated_with_the_next_step():
    x = np.array([window_offsets(0, step, 8, 10**6) for step in range(4000)], float)
    correlation = np.corrcoef(np.concatenate([x[:-1], x[1:]], axis=1).T)
    assert np.abs(correlation - np.eye(16)).max() < 0.08


def test_the_shortest_file_has_one_window(tmp_path):
    file = make_file(tmp_path / "a.tokens", 17)
    batch = next(batches(file))
    np.testing.assert_array_equal(batch["inputs"], np.tile(np.arange(16), (8, 1)))
    assert batch["targets"][0, -1] == file.header.eot_id


def test_wide_ids_come_out_whole(tmp_path):
    file = make_file(tmp_path / "a.tokens", 40, vocab_size=100000, first=70000)
    assert file.tokens.dtype == np.uint32
    assert next(batches(file))["inputs"].min() >= 70000


def test_bad_settings_are_named(file, tmp_path):
    with pytest.raises(DataError, match=r"sequence_length=16 needs windows of 17 tokens, but a.tokens has 16; .* 15"):
        batches(make_file(tmp_path / "a.tokens", 16))
    with pytest.raises(ConfigError, match="batch_size=8 must be a positive multiple of the 3 processes"):
        batches(file, process_count=3)
    with pytest.raises(ConfigError, match=r"process_index=2 must be in 0\.\.1"):
        batches(file, process_index=2, process_count=2)
    with pytest.raises(ConfigError, match="sequence_length=0 must be positive"):
        batches(file, sequence_length=0)
    with pytest.raises(ConfigError, match="batch_size=0"):
        validation_batches(file, batch_size=0, sequence_length=4)


@pytest.mark.parametrize("n_tokens", [2, 16, 17, 18, 64, 65, 66, 129, 130, 1000])
@pytest.mark.parametrize("parts", [1, 2])
def test_validation_predicts_every_token_but_the_first_once(tmp_path, n_tokens, parts):
    file = make_file(tmp_path / "a.tokens", n_tokens)
    options = {"batch_size": 4, "sequence_length": 16, "process_count": parts}
    predicted, shapes = [], set()
    shards = [validation_batches(file, process_index=p, **options) for p in range(parts)]
    for batch_of_parts in zip(*shards, strict=True):
        for batch in batch_of_parts:
            live = batch["mask"] == 1
            predicted += list(zip(batch["inputs"][live].tolist(), batch["targets"][live].tolist(), strict=True))
            shapes |= {(v.shape, v.dtype.name) for v in batch.values()}
            assert set(np.unique(batch["mask"])) <= {0, 1}
            assert not batch["targets"][~live].any()
    tokens = file.tokens.tolist()
    assert predicted == list(itertools.pairwise(tokens))
    rows = 4 // parts
    assert shapes == {((rows, 16), "int32"), ((rows, 16), "float32")}


def test_validation_count_and_limit(file):
    options = {"batch_size": 4, "sequence_length": 16}
    count = validation_batch_count(file, **options)
    whole = list(validation_batches(file, **options))
    assert len(whole) == count == 79
    assert same(whole[:5], list(validation_batches(file, max_batches=5, **options)))
    assert same(whole, list(validation_batches(file, max_batches=1000, **options)))


def test_one_token_cannot_be_predicted(tmp_path):
    with pytest.raises(DataError, match="has 1 token; at least 2"):
        validation_batches(make_file(tmp_path / "a.tokens", 1), batch_size=1, sequence_length=4)


def test_the_order_needs_no_grain():
    code = "import sys; sys.modules['grain'] = None; from jaxablate.data.pipeline import window_offsets as w; " \
           "print(w(0, 0, 2, 9), 'jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("False\n")


def test_a_batch_of_the_paper_is_quick(tmp_path):
    """The bound of 2 ms of processor time at 32 x 256 leaves room for slow machines: 0.04 ms where it was written."""
    file = make_file(tmp_path / "a.tokens", 60000, vocab_size=65536)
    iterator = batches(file, batch_size=32, sequence_length=256, prefetch=0)
    take(iterator, 5)
    start = time.process_time()
    take(iterator, 200)
    assert (time.process_time() - start) / 200 < 2e-3
