"""Tests of drawing ahead: what is drawn when, and on which thread; errors and interrupts; the same weights as without."""

from __future__ import annotations

import dataclasses
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from random_rows import RandomSource, network_config, random_rows
from small_model import CONFIG, sources_of, tiny_pretrained, tiny_training

from quantformer_training import competitors, finetune, joint, pretrain
from quantformer_training.ahead import drawn_ahead
from quantformer_training.competitors import Budget, train_network
from quantformer_training.examples import Examples
from quantformer_training.loop import LoopConfig, Progress
from quantformer_training.networks import NETWORKS

#: Seconds after which a test gives up on a thread or a process.
PATIENCE_S = 60.0


def silent(progress: Progress) -> None:
    """Nobody watches."""


def drawing_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("drawing")]


def test_the_next_epoch_is_drawn_while_the_present_one_is_used() -> None:
    begun, threads = [threading.Event() for _ in range(4)], set[int]()

    def draw(epoch: int) -> int:
        threads.add(threading.get_ident())
        begun[epoch].set()
        return 10 * epoch

    with drawn_ahead(draw, epochs=3) as drawn:
        assert not begun[0].is_set()
        for epoch in range(3):
            assert drawn(epoch) == 10 * epoch
            assert epoch == 2 or begun[epoch + 1].wait(PATIENCE_S), "nobody has asked for it yet"
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    assert not begun[3].is_set(), "nothing is drawn beyond the last epoch"
    assert not drawing_threads()


def test_a_run_that_resumes_begins_where_it_stood() -> None:
    asked: list[int] = []
    with drawn_ahead(lambda epoch: asked.append(epoch) or epoch, epochs=6) as drawn:
        assert [drawn(epoch) for epoch in (3, 4, 5)] == [3, 4, 5]
    assert asked == [3, 4, 5]


def test_two_epochs_are_in_memory_at_most() -> None:
    class Rows:
        """An epoch's rows."""

    alive: weakref.WeakSet[Rows] = weakref.WeakSet()
    most = 0

    def draw(epoch: int) -> Rows:
        nonlocal most
        made = Rows()
        alive.add(made)
        gc.collect()
        most = max(most, len(alive))
        return made

    with drawn_ahead(draw, epochs=8) as drawn:
        for epoch in range(8):
            rows = drawn(epoch)
            time.sleep(0.01)
            del rows
    gc.collect()
    assert most <= 2
    assert not alive


def test_an_error_of_the_thread_is_raised_where_its_epoch_is_asked_for() -> None:
    def draw(epoch: int) -> int:
        if epoch == 1:
            raise OSError("the disk went away")
        return epoch

    with drawn_ahead(draw, epochs=5) as drawn:
        assert drawn(0) == 0
        with pytest.raises(OSError, match="the disk went away"):
            drawn(1)
    assert not drawing_threads()
    # One that is never asked for is nobody's error.
    with drawn_ahead(draw, epochs=5) as drawn:
        assert drawn(0) == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_whatever_ends_the_loop_ends_the_thread(error: type[BaseException]) -> None:
    ended = threading.Event()

    def draw(epoch: int) -> int:
        if epoch:
            time.sleep(0.05)
            ended.set()
        return epoch

    def train() -> None:
        with drawn_ahead(draw, epochs=9) as drawn:
            drawn(0)
            raise error

    with pytest.raises(error):
        train()
    assert ended.is_set(), "what had begun is waited for"
    assert not drawing_threads()


def test_ctrl_c_in_a_training_ends_the_program() -> None:
    program = """
import sys, time
from quantformer_training.ahead import drawn_ahead
def draw(epoch):
    time.sleep(0.1)
    return epoch
try:
    with drawn_ahead(draw, epochs=10**6) as drawn:
        for epoch in range(10**6):
            drawn(epoch)
            print(epoch, flush=True)
except KeyboardInterrupt:
    sys.exit(130)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGINT)
        process.stdout.read()
        assert process.wait(PATIENCE_S) == 130


@contextmanager
def drawn_at_once(draw: Callable[[int], Any], *, epochs: int) -> Iterator[Callable[[int], Any]]:
    """What stood there before: an epoch is drawn where it is asked for, on the asking thread."""
    yield draw


def weights(*networks: torch.nn.Module) -> bytes:
    return b"".join(value.numpy().tobytes() for one in networks for value in one.state_dict().values())


def trainings() -> dict[str, Callable[[], bytes]]:
    """Every training that draws ahead, each with dropout and several epochs."""
    sources = sources_of()
    config = dataclasses.replace(CONFIG, dropout=0.1)
    told: dict[str, Any] = {
        "vocabulary": sources.vocabulary, "real": sources.real, "pseudo": sources.pseudo, "moments": sources.moments,
        "validation": sources.validation, "config": tiny_training(epochs=3), "report": silent,
    }  # fmt: skip

    def fine() -> bytes:
        made = finetune.finetune(tiny_pretrained(config), **told)
        return weights(made.forecaster, *made.tokens)

    def both() -> bytes:
        return weights(joint.finetune_joint(tiny_pretrained(config), **told))

    def before() -> bytes:
        rng = np.random.default_rng(0)
        windows = [
            pretrain.Windows(dff=rng.normal(0.0, 0.2, (n, 160)).astype(np.float32), active=np.arange(n) % 3 == 0)
            for n in (70, 20)
        ]
        loop = LoopConfig(epochs=3, learning_rate=1e-3)
        made = pretrain.pretrain(train=windows[0], validation=windows[1], config=config, loop=loop, report=silent)
        return weights(made.autoencoder)

    def competitor(name: str) -> bytes:
        made = train_network(
            NETWORKS[name], task="activation", train=RandomSource(random_rows(40, seed=1)),
            validation=RandomSource(random_rows(20, seed=2)), pseudo=RandomSource(random_rows(40, seed=3)),
            config=network_config(dropout=0.1), budget=Budget(epochs=3, rows_per_epoch=150), seed=0, signal_scale=0.2,
            report=silent,
        )  # fmt: skip
        return weights(made.network)

    return {
        "fine-tuning": fine, "both tasks": both, "pre-training": before, "brainlm": lambda: competitor("brainlm"),
        "crossformer": lambda: competitor("crossformer"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["fine-tuning", "both tasks", "pre-training", "brainlm", "crossformer"])
def test_weights_are_those_of_drawing_at_once_bit_for_bit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train = trainings()[name]
    ahead = train()
    assert not drawing_threads()
    for module in (finetune, joint, pretrain, competitors):
        monkeypatch.setattr(module, "drawn_ahead", drawn_at_once)
    assert train() == ahead


def test_an_error_while_drawing_reaches_the_caller_of_a_training() -> None:
    sources = sources_of()
    calls = 0

    class Failing:
        """Trials on a disk that goes away in the second epoch."""

        def __len__(self) -> int:
            return len(sources.real)

        def draw(self, count: int, rng: np.random.Generator) -> Examples:
            nonlocal calls
            # One call is the regressions' that training begins at.
            calls += threading.current_thread() is not threading.main_thread()
            if calls == 2:
                raise OSError("the disk went away")
            return sources.real.draw(count, rng)

        def at_lead(self, lead: int, *, most: int | None = None) -> Examples:
            return sources.real.at_lead(lead, most=most)

    with pytest.raises(OSError, match="the disk went away"):
        finetune.finetune(
            tiny_pretrained(), vocabulary=sources.vocabulary, real=Failing(), pseudo=sources.pseudo,
            moments=sources.moments, validation=sources.validation, config=tiny_training(epochs=3), report=silent,
        )  # fmt: skip
    assert calls == 2
    assert not drawing_threads()
