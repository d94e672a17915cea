"""The stream: Philox's published vectors, moments of the exact distribution, and independence of everything but the offset."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planish_kerzoo import noise

SEEDS = st.integers(0, 2**64 - 1)


def test_philox_gives_the_published_words() -> None:
    """Known answers of the Random123 distribution for philox4x32-10."""
    ones = noise.MASK
    assert noise.philox((0, 0, 0, 0), 0) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    assert noise.philox((ones, ones, ones, ones), ones << 32 | ones) == (
        0x408F276D,
        0x41C83B0E,
        0xA20BC7C6,
        0x6D5451FD,
    )


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS, first=st.integers(0, 2**40), lane=st.integers(0, noise.LANES - 1), stream=st.integers(0, 100)
)
def test_vectorised_words_equal_plain_integers(seed: int, first: int, lane: int, stream: int) -> None:
    """Offsets beyond 2^32 included: the counter has 64 bits."""
    found = noise.words(torch.tensor([noise.as_int64(seed)]), first, 1, stream)
    counter = first * noise.LANES + lane
    expected = noise.philox((counter & noise.MASK, counter >> 32, stream, 0), seed)
    assert tuple(int(word[0, lane]) for word in found) == expected


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, first=st.integers(0, 2**36), u=st.sampled_from(["gaussian", "rademacher"]))
def test_a_direction_does_not_depend_on_how_it_is_cut(seed: int, first: int, u: noise.Distribution) -> None:
    key = torch.tensor([noise.as_int64(seed)])
    whole = noise.directions(key, first, 5, u)[0]
    pieces = [noise.directions(key, first + at, size, u)[0] for at, size in ((0, 2), (2, 1), (3, 2))]
    assert torch.equal(whole, torch.cat(pieces))
    other = torch.tensor([noise.as_int64(seed ^ 1), noise.as_int64(seed)])
    assert torch.equal(noise.directions(other, first, 5, u)[1], whole)


def test_moments_of_the_exact_distribution() -> None:
    """Over all 2^32 words: radius and angle are independent, so the moments are products of two finite sums."""
    radius, cosine, sine = noise.tables(torch.device("cpu")).double()
    for wave in (cosine, sine):
        assert abs(float(wave.mean())) < 1e-8
        assert abs(float(radius.square().mean() * wave.square().mean()) - 1) < 1e-5
        assert abs(float((radius**4).mean() * (wave**4).mean()) - 3) < 1e-3
        assert abs(float((radius**3).mean() * (wave**3).mean())) < 1e-7
    assert abs(float(radius.square().mean() * (cosine * sine).mean())) < 1e-8
    assert 4.8 < float(radius.max()) < 4.9


def test_halves_of_seeds_and_signed_seeds_round_trip() -> None:
    for seed in (0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 0xFEDCBA9876543210):
        low, high = noise.halves(seed)
        assert (high & noise.MASK) << 32 | (low & noise.MASK) == seed
        assert -(2**31) <= low < 2**31
        assert noise.as_int64(seed) & (2**64 - 1) == seed


def test_signs_are_fair_and_directions_uncorrelated() -> None:
    keys = torch.arange(8)
    signs = noise.directions(keys, 0, 16, "rademacher")
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    drawn = torch.cat([signs, noise.directions(keys + 100, 0, 16, "gaussian")])
    size = drawn.shape[1]
    correlation = drawn @ drawn.T / size - torch.eye(16)
    assert float(correlation.abs().max()) < 5 * (2 / size) ** 0.5
    shifted = (drawn[:, 1:] * drawn[:, :-1]).mean(1)
    assert float(shifted.abs().max()) < 5 / size**0.5
