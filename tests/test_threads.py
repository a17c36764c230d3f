"""One thread inside, as many as before afterwards, whatever happened."""

from __future__ import annotations

import pytest
import torch

from quantformer_training.threads import one_thread


def test_one_thread_inside_and_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(KeyError), one_thread():
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
