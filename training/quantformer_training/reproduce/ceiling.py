"""How far each model goes on a simulated mouse: from the neuron x stimulus rate to the ceiling of what it could know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer_training.bootstrap import UNDEFINED_LIMIT, Verdict
from quantformer_training.contest import Entry, contest
from quantformer_training.effort import Effort
from quantformer_training.pretrain_cohort import pretrain_cohort
from quantformer_training.run_data import RunData
from quantformer_training.simulated import MouseConfig, ceilings, short_session
from quantformer_training.store import write_session

Floats = NDArray[np.float64]

#: Where a share is 0: what is known without the baseline, by task.
STARTS = MappingProxyType({"activation": "neuron_stimulus_rate", "forecast": "neuron_stimulus_mean"})
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Share:
    """``loss`` of a model on test rows, and its ``share`` of the way to the ceiling's, with a 95 % interval over trials;
    ``lead`` is its share less the first's (of the first: less the second's), with the interval of that difference.

    There is no share (NaN) where the ceiling's loss is not below the start's, and no interval where that happens in more
    than a twentieth of the resamples.
    """

    model: str
    loss: float
    share: float
    low: float
    high: float
    lead: tuple[float, float, float]

    @property
    def verdict(self) -> Verdict:
        """Where it stands against the first (the first: against the second)."""
        _, low, high = self.lead
        if not (low > 0.0 or high < 0.0):
            return "not distinguishable"
        return "ahead" if low > 0.0 else "behind"


@dataclass(frozen=True, kw_only=True)
class CeilingStudy:
    """Shares by log-loss (activation) and by mean squared error (forecast), the best first; ``ceiling`` and ``start`` are the
    losses at 1 and 0. ``failures`` are models that gave nothing.
    """

    trials: int
    neurons: int
    activation: tuple[Share, ...]
    forecast: tuple[Share, ...]
    start: Mapping[str, float]
    ceiling: Mapping[str, float]
    failures: Mapping[str, str]


def ceiling_study(
    *,
    directory: str,
    effort: Effort,
    models: tuple[str, ...],
    seed: int,
    neurons: int = 24,
    presentations: int = 240,
    particles: int = 256,
    device: str = "cpu",
) -> CeilingStudy:
    """One simulated mouse under drifting gratings, two thirds of which train; every model, and the particle filter that reads
    each neuron's own fluorescence and knows the simulator's parameters. Networks train on ``device``, ``cpu`` or ``cuda``.
    Minutes.

    Raises:
        DataError: a model that is the start of a share gave nothing.
        UsageError: the device is not known. UnavailableError: ``cuda`` was asked for and torch sees no GPU.
    """
    session = short_session(MouseConfig(neurons=neurons, seed=seed), presentations=presentations)
    stored = write_session(session.recording, Path(directory) / "session")
    place, mouse = str(Path(directory) / "session"), stored.provenance.subject
    category = next(name for name in stored.stimuli.category if name != "spontaneous")
    pretrained = str(Path(directory) / "pretrained")
    pretrain_cohort(sessions=(place,), effort=effort, out=pretrained, seed=seed, device=device)
    entries = contest(
        sessions=(place,),
        mouse=mouse,
        category=category,
        models=models,
        pretrained=pretrained,
        effort=effort,
        seed=seed,
        device=device,
    )
    data = RunData.read(stored, category=category, most=effort.most)
    test = data.sources(1.0).test.rows()
    best = ceilings(session, rows=np.unique(test.trial), particles=particles, seed=seed)
    at = np.searchsorted(best.rows, test.trial)
    told = best.own.probability[at, test.neuron]
    expected = np.square(best.own_response[at, test.neuron] - test.response).mean(1)
    losses = {
        "activation": {one.model: _log_loss(one, test.active) for one in entries if "probability" in one.arrays},
        "forecast": {
            one.model: one.arrays["squared_error"].astype(np.float64)
            for one in entries
            if "squared_error" in one.arrays
        },
    }
    tops = {"activation": -np.log(np.where(test.active, told, 1.0 - told)), "forecast": expected}
    failures = {one.model: one.failure for one in entries if one.failure}
    for task, model in STARTS.items():
        if model not in losses[task]:
            reason = failures.get(model, "it was not asked for")
            raise DataError(f"{model}, from which shares of the {task} are counted, gave nothing: {reason}")
    starts = {task: losses[task][model] for task, model in STARTS.items()}
    shares = {
        task: shares_of(losses[task], start=starts[task], top=tops[task], trial=test.trial, seed=seed) for task in losses
    }
    return CeilingStudy(
        trials=len(best.rows),
        neurons=neurons,
        activation=shares["activation"],
        forecast=shares["forecast"],
        start={task: float(loss.mean()) for task, loss in starts.items()},
        ceiling={task: float(loss.mean()) for task, loss in tops.items()},
        failures=failures,
    )


def _log_loss(entry: Entry, active: NDArray[np.bool_]) -> Floats:
    probability = np.clip(entry.arrays["probability"].astype(np.float64), 1e-6, 1.0 - 1e-6)
    return -np.log(np.where(active, probability, 1.0 - probability))


def shares_of(
    losses: Mapping[str, Floats], *, start: Floats, top: Floats, trial: NDArray[np.integer], seed: int
) -> tuple[Share, ...]:
    """Shares with intervals from resampled trials; each is also compared with the first, which is compared with the second.

    Losses are of rows, as ``trial`` is; ``start`` and ``top`` those at a share of 0 and 1. The best comes first.
    """
    blocks, which = np.unique(trial, return_inverse=True)
    names = list(losses)
    # Sums a trial: rows are many, trials few.
    sums = np.stack([np.bincount(which, loss, len(blocks)) for loss in (start, top, *losses.values())])
    drawn = np.random.default_rng(seed).integers(0, len(blocks), (RESAMPLES, len(blocks)))
    whole, resampled = sums.sum(1), sums[:, drawn].sum(-1)
    share, shares = _way(whole), _way(resampled)
    # By loss, which orders shares too, and does where there are none.
    order = np.argsort(whole[2:], kind="stable")
    found = []
    for position in order:
        rival = order[min(1, len(order) - 1)] if position == order[0] else order[0]
        found.append(
            Share(
                model=names[position],
                loss=float(losses[names[position]].mean()),
                share=float(share[position]),
                low=_percentile(shares[position], 2.5),
                high=_percentile(shares[position], 97.5),
                lead=(
                    float(share[position] - share[rival]),
                    _percentile(shares[position] - shares[rival], 2.5),
                    _percentile(shares[position] - shares[rival], 97.5),
                ),
            )
        )
    return tuple(found)


def _way(sums: Floats) -> Floats:
    """Shares of the models, whose losses follow those of start and top; NaN where there is no way to go."""
    length = np.where(sums[0] > sums[1], sums[0] - sums[1], np.nan)
    share: Floats = (sums[0] - sums[2:]) / length
    return share


def _percentile(values: Floats, percent: float) -> float:
    undefined = np.isnan(values)
    return float("nan") if undefined.mean() > UNDEFINED_LIMIT else float(np.percentile(values[~undefined], percent))
