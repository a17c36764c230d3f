"""One thread inside, as many as before afterwards, whatever happened."""

from __future__ import annotations

import contextlib

import torch

from quantformer_training.threads import one_thread


def test_one_thread_inside_and_as_before_afterwards() -> None:
    before, inside = torch.get_num_threads(), 0
    try:
        torch.set_num_threads(2)
        with contextlib.suppress(KeyError), one_thread():
            inside = torch.get_num_threads()
            raise KeyError
        assert (inside, torch.get_num_threads()) == (1, 2)
    finally:
        torch.set_num_threads(before)
