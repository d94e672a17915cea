from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planish.errors import DataError, PlanishError
from planish_sdk.calibrate import batches, windows


@given(
    length=st.integers(1, 300),
    seqlen=st.integers(1, 40),
    nsamples=st.integers(1, 9),
    seed=st.integers(0, 2**40),
)
def test_windows_are_neighbouring_tokens_fixed_by_the_seed(length, seqlen, nsamples, seed):
    stream = torch.arange(length) * 7
    if length < seqlen:
        with pytest.raises(DataError, match=f"got {length} tokens, one window of seqlen {seqlen}"):
            windows(stream, seqlen, nsamples, seed)
        return
    cut = windows(stream, seqlen, nsamples, seed)
    assert cut.shape == (nsamples, seqlen)
    assert cut.dtype == torch.int64
    assert torch.equal(cut - cut[:, :1], (torch.arange(seqlen) * 7).expand(nsamples, -1))
    assert int(cut.min()) >= 0
    assert int(cut.max()) <= 7 * (length - 1)
    torch.rand(3)  # the global random state plays no part
    assert torch.equal(cut, windows(stream.tolist(), seqlen, nsamples, seed))


def test_every_start_can_be_drawn():
    starts = windows(range(12), 10, 200, seed=3)[:, 0]
    assert set(starts.tolist()) == {0, 1, 2}


def test_another_seed_gives_other_windows():
    stream = torch.arange(5000)
    assert not torch.equal(windows(stream, 8, 16, seed=0), windows(stream, 8, 16, seed=1))


def test_consecutive_windows_tile_the_beginning():
    cut = windows(range(100), 7, 5, seed=0, mode="consecutive")
    assert torch.equal(cut.flatten(), torch.arange(35))
    with pytest.raises(DataError, match="got 34 tokens, 5 windows side by side of seqlen 7 needs 35"):
        windows(range(34), 7, 5, seed=0, mode="consecutive")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"seqlen": 0}, "seqlen: got 0"),
        ({"nsamples": -1}, "nsamples: got -1"),
        ({"mode": "tiled"}, "mode: got 'tiled', choose from random, consecutive"),
        ({"token_ids": torch.zeros(2, 3)}, r"shape \[2, 3\], needs one dimension"),
    ],
)
def test_bad_arguments(arguments, reason):
    with pytest.raises(PlanishError, match=reason):
        windows(**{"token_ids": range(50), "seqlen": 4, "nsamples": 2, "seed": 0} | arguments)


@given(nsamples=st.integers(1, 20), batch_size=st.integers(1, 25))
def test_batches_keep_order_and_size(nsamples, batch_size):
    cut = torch.arange(nsamples * 3).reshape(nsamples, 3)
    pieces = list(batches(cut, batch_size))
    assert torch.equal(torch.cat(pieces), cut)
    assert all(len(piece) == batch_size for piece in pieces[:-1])
    assert 1 <= len(pieces[-1]) <= batch_size


def test_batches_refuse_a_size_below_one():
    with pytest.raises(PlanishError, match="batch_size: got 0"):
        list(batches(torch.zeros(2, 2), 0))
