"""Neuron-trials a second in training itself, beside the ceiling: the network's own matrix products, run alone.

`pretrain` and `finetune` run as they always do, on made-up data, one epoch after the other; after each measured epoch the
products of a step with weight matrices (their shapes, layouts and types were noted in the first step, forward and backward) run
alone for as many rows. Each epoch thus has its own ceiling, measured at the same moment of a busy machine. The products inside
fused attention, 2 % of the operations at the paper's size, are left out of the ceiling, which makes it higher, never lower.

Rows are drawn ahead, on a thread, while the epoch before is trained on. So every second epoch is measured: the one between
follows at once, without the ceiling's time, in which the thread would get ahead as it never does in training.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from quantformer.autoencoder import Autoencoder
from quantformer.config import TUNING_QUANTITIES, ModelConfig
from quantformer.labels import LabelRule
from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer.signal import SignalRecipe
from quantformer_training.accelerator import Accelerator, accelerator_of
from quantformer_training.device_rows import drawn_on
from quantformer_training.examples import Vocabulary
from quantformer_training.finetune import FinetuneConfig, draw_epoch, finetune
from quantformer_training.fit import vocabulary_of
from quantformer_training.indexed import IndexedPart, IndexedSource, SessionReader
from quantformer_training.loop import LoopConfig, LoopResult, Progress
from quantformer_training.pretrain import Pretrained, Windows, pretrain
from quantformer_training.splits import split_by_time
from quantformer_training.store import write_session
from quantformer_training.threads import computing_with
from quantformer_training.trials import Moments, pseudo_moments, real_moments

PRETRAINING, ACTIVATION, FORECAST, FINETUNING = "pre-training", "activation", "forecast", "fine-tuning"
_REAL_TRIALS, _PERIOD_S, _RATE_HZ = 100, 3.0, 30.0
_VALIDATION_ROWS = 32


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Neuron-trials a second: medians over epochs.

    ``steps`` counts forward, backward and optimiser, ``whole`` also the wait for rows that are not drawn yet; ``ceiling`` is
    that of the products alone. ``share`` is the median over epochs of ``steps / ceiling`` by the clock, ``cpu_share`` the same
    by seconds of CPU time of all threads, which a busy machine disturbs less; None on a GPU. ``drawn`` is what drawing gives
    when nothing else runs: below ``steps`` training waits for it. None in pre-training, where nothing is drawn but an order.
    """

    task: str
    device: str
    precision: str
    threads: int
    batch: int
    epochs: int
    steps: float
    whole: float
    ceiling: float
    share: float
    cpu_share: float | None
    drawn: float | None


@dataclass(frozen=True, kw_only=True)
class _Clocks:
    """Seconds by the clock and of CPU time."""

    clock: float
    cpu: float

    @classmethod
    def read(cls, device: torch.device) -> _Clocks:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return cls(clock=time.perf_counter(), cpu=time.process_time())

    def __sub__(self, other: _Clocks) -> _Clocks:
        return _Clocks(clock=self.clock - other.clock, cpu=self.cpu - other.cpu)


@dataclass(frozen=True, kw_only=True)
class _Epoch:
    rows: int
    waiting: _Clocks
    steps: _Clocks
    ceiling: _Clocks


@dataclass(frozen=True)
class Operand:
    """Shape, strides and type of a matrix."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype

    def made(self, device: torch.device) -> Tensor:
        """A matrix of this kind with random numbers; one that repeats a row without storing it is stored."""
        if 0 in self.strides:
            return torch.randn(self.shape, device=device).to(self.dtype)
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype, device=device).normal_()


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, notes every product of two matrices in ``found``, the backward pass's too."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: list[tuple[Operand, Operand]] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Pass the operation on."""
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            left, right = (Operand(tuple(m.shape), m.stride(), m.dtype) for m in args[-2:])
            self.found.append((left, right))
        return func(*args, **(kwargs or {}))

    def alone(self, device: torch.device) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Operands and room for the result of each product; products of the same kind share them."""
        made = {kind: kind.made(device) for pair in self.found for kind in pair}
        room = {
            pair: torch.empty(pair[0].shape[0], pair[1].shape[1], dtype=pair[0].dtype, device=device)
            for pair in self.found
        }
        return [(made[pair[0]], made[pair[1]], room[pair]) for pair in self.found]


class _Watched(Accelerator):
    """Another accelerator of one process, which also notes when an epoch's steps begin and end, and a stage's first products."""

    def __init__(self, inner: Accelerator) -> None:
        super().__init__()
        self.device = inner.device
        self.products = Products()
        self.first_step: _Clocks | None = None
        self.last_step: _Clocks | None = None
        self._inner, self._listens = inner, False

    def autocast(self) -> AbstractContextManager[object]:
        return self._inner.autocast()

    def begin(self, seed: int) -> None:
        super().begin(seed)
        self.first_step = self.last_step = None
        # Runs here have seed 0, so that an epoch's seed is its number: a new stage begins.
        if seed == 0:
            self.products = Products()

    def share(self, rows: Tensor) -> Tensor:
        if self.first_step is None:
            self.first_step = _Clocks.read(self.device)
        if not self.products.found and not self._listens:
            self.products.__enter__()  # type: ignore[no-untyped-call]
            self._listens = True
        return super().share(rows)

    def mean(self, value: float) -> float:
        # The loop asks for the mean loss when the last step is done, then for that of validation.
        if self.last_step is None:
            self.last_step = _Clocks.read(self.device)
        return super().mean(value)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        if self._listens:
            self.products.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._listens = False


class _Stopwatch:
    """Receives the progress of a run, and runs the ceiling after each second epoch; the first warms up."""

    def __init__(self, machine: _Watched, *, batch: int) -> None:
        self.machine, self.batch = machine, batch
        self.epochs: dict[str, list[_Epoch]] = {}
        self._began = _Clocks.read(machine.device)

    def __call__(self, progress: Progress) -> None:
        device, first, last = self.machine.device, self.machine.first_step, self.machine.last_step
        assert first is not None
        assert last is not None
        if progress.epoch % 2:
            times = max(1, progress.rows // self.batch)
            alone, scale = self._alone(times), progress.rows / (times * self.batch)
            self.epochs.setdefault(progress.stage, []).append(
                _Epoch(
                    rows=progress.rows, waiting=first - self._began, steps=last - first,
                    ceiling=_Clocks(clock=alone.clock * scale, cpu=alone.cpu * scale),
                )
            )  # fmt: skip
        self._began = _Clocks.read(device)

    def _alone(self, times: int) -> _Clocks:
        """What the products of so many steps take, after those of one step to warm up."""
        device = self.machine.device
        products = self.machine.products.alone(device)
        with torch.no_grad():
            for repeats in (1, times):
                before = _Clocks.read(device)
                for _ in range(repeats):
                    for left, right, room in products:
                        torch.mm(left, right, out=room)
        return _Clocks.read(device) - before


def measure(
    config: ModelConfig,
    *,
    device: str = "cpu",
    precision: str = "float32",
    threads: int = 1,
    batch: int = 256,
    steps: int = 4,
    epochs: int = 5,
) -> tuple[Throughput, ...]:
    """Pre-training, both tasks of fine-tuning, and fine-tuning as a whole: a neuron-trial that passes through both networks.

    Each measures ``epochs`` epochs of about ``steps`` batches, and runs as many between them; ``threads`` are torch's on the
    CPU, and the most that draw.

    Raises:
        UsageError, UnavailableError, MissingExtraError: as `accelerator_of`.
    """
    with computing_with(threads), tempfile.TemporaryDirectory() as directory:
        loop = LoopConfig(epochs=2 * epochs, learning_rate=1e-4, stop_after=2 * epochs)
        watched = _Watched(accelerator_of(device=device, precision=precision))
        watch = _Stopwatch(watched, batch=batch)
        pretrain(
            train=made_windows(config, count=batch * steps), validation=made_windows(config, count=_VALIDATION_ROWS),
            config=config, loop=loop, report=watch, batch=batch, accelerator=watched,
        )  # fmt: skip
        # Random weights: what they are costs nothing, and the run above is there for its time only.
        frozen, patches = Autoencoder(config).freeze(), torch.randn(config.codes, config.patch_frames)
        nothing = LoopResult(best_epoch=0, best_validation=0.0, epochs_run=0)
        pretrained = Pretrained(config=config, autoencoder=frozen, signal_scale=0.2, code_patch=patches, result=nothing)
        vocabulary, sources = made_sources(Path(directory), rows=batch * steps)
        config_of_both = FinetuneConfig(
            activation=loop, forecast=loop, batch=batch, rows_per_epoch=batch * steps, validation_rows=_VALIDATION_ROWS
        )
        finetune(
            pretrained, vocabulary=vocabulary, real=sources["real"], pseudo=sources["pseudo"],
            moments=sources["pseudo"], validation=sources["validation"], report=watch, accelerator=watched, config=config_of_both,
        )  # fmt: skip
        drawn = _drawn_alone(sources, config=config_of_both, device=watched.device, times=epochs)
    found = dict(watch.epochs)
    # One row costs what it costs in the one network and in the other.
    found[FINETUNING] = [_both(*pair) for pair in zip(found[ACTIVATION], found[FORECAST], strict=True)]
    # Each network draws its own.
    draws = {PRETRAINING: None, ACTIVATION: drawn, FORECAST: drawn, FINETUNING: drawn / 2}
    return tuple(
        _summary(task, found[task], device=device, precision=precision, threads=threads, batch=batch, drawn=rate)
        for task, rate in draws.items()
    )


def _drawn_alone(
    sources: Mapping[str, IndexedSource], *, config: FinetuneConfig, device: torch.device, times: int
) -> float:
    """Rows a second of one network's epochs when nothing else runs, drawn where training draws them."""
    real, pseudo = drawn_on(device, sources["real"], sources["pseudo"])
    rates = []
    for epoch in range(times):
        before = _Clocks.read(device)
        rows, _ = draw_epoch(real, pseudo, epoch, config=config, seed=0, device=device)
        rates.append(len(rows) / (_Clocks.read(device) - before).clock)
    return statistics.median(rates)


def _both(one: _Epoch, other: _Epoch) -> _Epoch:
    def added(name: str) -> _Clocks:
        a, b, scale = getattr(one, name), getattr(other, name), one.rows / other.rows
        return _Clocks(clock=a.clock + b.clock * scale, cpu=a.cpu + b.cpu * scale)

    return _Epoch(rows=one.rows, waiting=added("waiting"), steps=added("steps"), ceiling=added("ceiling"))


def _summary(
    task: str,
    epochs: Sequence[_Epoch],
    *,
    device: str,
    precision: str,
    threads: int,
    batch: int,
    drawn: float | None,
) -> Throughput:
    middle = statistics.median
    return Throughput(
        task=task,
        device=device,
        precision=precision,
        threads=threads,
        batch=batch,
        epochs=len(epochs),
        steps=middle(e.rows / e.steps.clock for e in epochs),
        whole=middle(e.rows / (e.waiting.clock + e.steps.clock) for e in epochs),
        ceiling=middle(e.rows / e.ceiling.clock for e in epochs),
        share=middle(e.ceiling.clock / e.steps.clock for e in epochs),
        cpu_share=middle(e.ceiling.cpu / e.steps.cpu for e in epochs) if device == "cpu" else None,
        drawn=drawn,
    )


def made_windows(config: ModelConfig, *, count: int) -> Windows:
    """Noise, a third of it active."""
    rng = np.random.default_rng(0)
    dff = rng.normal(0.0, 0.2, (count, config.baseline_frames + config.response_frames)).astype(np.float32)
    return Windows(dff=dff, active=np.arange(count) % 3 == 0)


def made_sources(directory: Path, *, rows: int) -> tuple[Vocabulary, dict[str, IndexedSource]]:
    """A stored session of noise large enough that an epoch of ``rows`` repeats none: real and pseudo-onsets, validation."""
    recording = _recording(neurons=rows // (2 * _REAL_TRIALS) + 2)
    recipe, rule = SignalRecipe(), LabelRule()
    split = split_by_time(recording, recipe=recipe, train_trials=_REAL_TRIALS)
    reader = SessionReader(write_session(recording, directory / "session"), split=split, recipe=recipe, rule=rule)
    vocabulary, real = vocabulary_of(recording), real_moments(recording)
    frames = np.arange(recipe.baseline_frames, recording.frames - recipe.response_frames, 5)
    pseudo = pseudo_moments(recording, frames, recipe=recipe)

    def source(moments: Moments, part: str) -> IndexedSource:
        trials = reader.read(moments, part=part)
        kept = trials.moments
        known: NDArray[np.float32] = np.zeros((*trials.valid.shape, TUNING_QUANTITIES), np.float32)
        indexed = IndexedPart(
            trials=trials, neuron=np.arange(recording.neurons), stimulus=vocabulary.id_rows(kept),
            features=vocabulary.encoded(kept), tuning=known, population_tuning=known[:, 0].copy(),
        )  # fmt: skip
        return IndexedSource([indexed], signal_scale=0.2, recipe=recipe)

    return vocabulary, {
        "real": source(real, "train"), "pseudo": source(pseudo, "train"), "validation": source(real, "validation"),
    }  # fmt: skip


def _recording(*, neurons: int) -> Recording:
    rng, trials = np.random.default_rng(0), _REAL_TRIALS + 20
    onset = 5.0 + np.arange(trials) * _PERIOD_S
    frames = int((onset[-1] + 5.0) * _RATE_HZ)
    direction = np.arange(trials) % 8 * 45.0
    fluorescence = rng.normal(100.0, 20.0, (frames, neurons)).astype(np.float32)
    return Recording(
        fluorescence=fluorescence,
        timestamps_s=np.arange(frames) / _RATE_HZ,
        neuron_ids=tuple(f"n{i:05d}" for i in range(neurons)),
        stimuli=StimulusTable.build(
            onset_s=onset,
            duration_s=np.full(trials, 2.0),
            category=["drifting_gratings"] * trials,
            stimulus_id=[f"dir={angle:03.0f}" for angle in direction],
            features={"direction_deg": direction},
        ),
        provenance=Provenance(origin="simulated", source="noise", subject="none"),
        signal="corrected",
    )
