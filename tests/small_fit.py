"""One small fit, made once a test session and shared by the modules that look at it."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import small_model  # noqa: F401  # one thread of torch
from small_recording import small_recording

from quantformer.bundle import Bundle
from quantformer.signal import SignalRecipe
from quantformer_training.fit import FitConfig, Fitted, fit
from quantformer_training.loop import Progress
from quantformer_training.packing import write_fitted
from quantformer_training.splits import split_by_time


def tiny_config(*, epochs: int = 1, refit: bool = False, seed: int = 0) -> FitConfig:
    """The smallest fit that still takes every step."""
    quick = FitConfig.quick(seed=seed)
    loops = {name: replace(getattr(quick.finetuning, name), epochs=epochs) for name in ("activation", "forecast")}
    return replace(
        quick,
        pretraining=replace(quick.pretraining, epochs=epochs),
        finetuning=replace(quick.finetuning, rows_per_epoch=120, moment_epochs=1, moment_rows=120, batch=64, **loops),
        own_windows=200,
        refit=refit,
    )


def silent(progress: Progress) -> None:
    """Show nothing."""


#: Where bundles of the fit lie until the tests end.
_FOLDER = tempfile.TemporaryDirectory(prefix="quantformer-small-fit-")


@cache
def packed() -> Bundle:
    """The fit's bundle, made once too: an export takes ten seconds. Not to be changed."""
    metrics = {"auroc": 0.75, "slope": float("nan"), "odd": float("inf")}
    return write_fitted(fitted(), Path(_FOLDER.name) / "bundle", metrics=metrics)


@cache
def fitted() -> Fitted:
    """Four neurons, 40 gratings, 28 of which train; three seconds of grey in between, so that nothing begins there."""
    recording = small_recording(neurons=4, period_s=5.0)
    split = split_by_time(recording, recipe=SignalRecipe(), train_trials=28)
    return fit(recording, split=split, config=tiny_config(epochs=2), report=silent)
