"""What a page about a unit shows, against values looked for one by one."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxablate.errors import DataError
from jaxablate.neurons import survey as module
from jaxablate.neurons.survey import AFTER, BEFORE, BINS, SHARES, TOP, UnitsRead, most_tokens, survey

EOT, ROWS, LENGTH = 0, 14, 80
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 9, (ROWS, LENGTH))
TOKENS[:, 30] = EOT
MASK = np.ones((ROWS, LENGTH), np.float32)
MASK[-1, 50:] = 0
TABLE = RNG.normal(size=(9, 6)).astype(np.float32)
TABLE[:, 5] = TABLE[:, 1] + 0.1 * TABLE[:, 5]
UNITS = UnitsRead(threshold=np.array([0, 0, 0.5, 0, 9.0, 0], np.float32), sparse=np.arange(6) == 3,
                  signed=np.arange(6) == 2, family=np.array([0, 0, 0, 1, 0, 0]))


def read(table, tokens):
    """A unit's value depends on the token and on the place; unit 3 is mostly 0, and unit 4 never active."""
    place = jnp.arange(tokens.shape[1], dtype=jnp.float32)[None, :, None]
    x = table[tokens] + 0.3 * jnp.sin(place * jnp.arange(1.0, 7.0)[None, None])
    number = jnp.arange(6)[None, None]
    return jnp.where(number == 4, -1.0, jnp.where(number == 3, jnp.maximum(x - 1, 0), x))


def batches():
    for first in range(0, 16, 4):
        rows = np.arange(first, first + 4)
        filled = rows < ROWS
        yield {"inputs": np.where(filled[:, None], TOKENS[rows % ROWS], EOT),
               "mask": MASK[rows % ROWS] * filled[:, None]}


@functools.cache
def found():
    return survey(read, TABLE, batches, UNITS, eot_id=EOT), np.asarray(read(TABLE, jnp.asarray(TOKENS)))


def sizes(values, unit):
    """Sizes [W, T] of a unit, -inf where a token does not count."""
    return np.where(MASK > 0, np.abs(values[..., unit]) if unit == 2 else values[..., unit], -np.inf)


def test_places_are_the_strongest_of_each_segment_and_then_weaker_ones():
    result, values = found()
    assert result.text.shape == (ROWS, LENGTH) and result.mask.sum() == MASK.sum()
    for unit in (0, 1, 2, 5):
        x = sizes(values, unit)
        segments = {(w, s): w * LENGTH + s * 64 + int(x[w, s * 64 : (s + 1) * 64].argmax())
                    for w in range(ROWS) for s in range(2)}
        ranked = sorted(segments.values(), key=lambda at: -x.flat[at])
        np.testing.assert_array_equal(np.sort(x.flat[result.places[unit, :TOP]]), np.sort(x.flat[ranked[:TOP]]))
        assert set(result.places[unit, :TOP]) <= set(segments.values())
        for share, at in zip(SHARES, result.places[unit, TOP:], strict=True):
            rest = [x.flat[i] for i in ranked[TOP:]]
            nearest = min(rest, key=lambda value: abs(value - share * x.max()))
            if abs(nearest - share * x.max()) <= x.max() / 8:
                assert x.flat[at] == pytest.approx(nearest)
            else:
                assert at == -1
    assert (result.places[4] == -1).all()


def test_what_is_around_a_place_ends_with_its_story_and_window():
    result, values = found()
    checked = set()
    for unit in (0, 2, 3):
        for at, around in zip(result.places[unit], result.around[unit], strict=True):
            row, position = divmod(int(at), LENGTH)
            for offset, value in zip(range(-BEFORE, AFTER + 1), around, strict=True) if at >= 0 else ():
                t = position + offset
                same_story = 0 <= t < LENGTH and not (TOKENS[row, min(t, position) : max(t, position)] == EOT).any()
                if t < position:
                    same_story = same_story and TOKENS[row, t] != EOT
                elif t > position:
                    same_story = same_story and TOKENS[row, position] != EOT
                expected = values[row, t, unit] if same_story and MASK[row, t] else 0
                assert value == pytest.approx(expected, abs=1e-6)
                checked.add((same_story, t < position))
    assert len(checked) == 4


def test_histograms_count_every_token_between_the_least_and_the_greatest_value():
    result, values = found()
    counted = values[MASK > 0]
    np.testing.assert_array_equal(result.high, counted.max(0))
    for unit in (0, 1, 2):
        assert result.low[unit] == counted[:, unit].min()
        expected = np.histogram(counted[:, unit], BINS, (result.low[unit], result.high[unit]))[0]
        np.testing.assert_allclose(result.histogram[unit], expected, atol=2)  # values at an edge
        assert result.histogram[unit].sum() == MASK.sum()
    assert result.low[3] == 0 and result.histogram[3].sum() == (counted[:, 3] > 0).sum()


def test_partners_are_the_most_correlated_units_that_fire():
    result, values = found()
    varied = values[MASK > 0] + 1e-9 * RNG.normal(size=(int(MASK.sum()), 6))  # unit 4 is constant
    correlations = np.corrcoef(varied.T)
    assert result.sampled == MASK.sum()
    assert result.partners[1, 0] == 5 and result.partners[5, 0] == 1
    for unit in range(6):
        for partner, r in zip(result.partners[unit], result.correlations[unit], strict=True):
            if partner >= 0:
                assert partner not in (3, 4, unit)  # of another family; never active; itself
                assert r == pytest.approx(correlations[unit, partner], abs=1e-5)
    assert (result.partners[3:5] == -1).all()


def test_pieces_of_a_batch_change_nothing(monkeypatch):
    monkeypatch.setattr("jaxablate.neurons.firing_counts._CPU_TOKENS", 2 * LENGTH)
    result, _ = found()
    again = survey(read, TABLE, batches, UNITS, eot_id=EOT)
    for name, x in vars(result).items():
        np.testing.assert_allclose(getattr(again, name), x, rtol=1e-6, atol=1e-6, err_msg=name)


def test_so_much_text_is_read_as_there_is_memory_for():
    assert most_tokens(12_288, 1 << 17) == 1 << 17
    assert most_tokens(1 << 20, 1 << 17) * (1 << 20) // module.SEGMENT == module.MOST_CANDIDATES


def test_values_that_are_not_finite_are_refused():
    with pytest.raises(DataError, match="NaN or infinite"):
        survey(read, np.full_like(TABLE, np.nan), batches, UNITS, eot_id=EOT)
    with pytest.raises(DataError, match="no text"):
        survey(read, TABLE, lambda: (), UNITS, eot_id=EOT)
