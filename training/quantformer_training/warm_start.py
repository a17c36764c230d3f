"""Where fine-tuning begins: the linear shortcuts at their regularised regressions, so that the transformer learns the rest.

Beyond the paper. With a few hundred trials a gradient takes longer to find a linear model than a transformer takes to learn
the training set by heart; begun there, the network is never far behind a regression, and early stopping decides how far it
goes beyond.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, cross_val_score
from torch import nn

from quantformer.forecaster import SHORTCUT_GAIN, Forecaster, Shortcut
from quantformer_training.examples import Examples
from quantformer_training.sources import RowSource

#: Rows that the regressions read, at most; each of a small set is read several times, under different leads and gaps.
ROWS = 20_000
_REPEATS = 4
#: Penalties tried, on standardised inputs; trials left out of the fit choose.
_LOGISTIC_C = (0.01, 0.03, 0.1, 0.3)
_RIDGE_ALPHA = (10_000.0, 3000.0, 1000.0, 300.0, 100.0)
_FOLDS = 5
#: The population's level is taken for varying so many times less than it does, so that its weights are pulled harder by the
#: square of it: all rows of a moment share it, and there are far fewer moments than rows.
_POPULATION_PULL = 2.0


def start_rows(real: RowSource, pseudo: RowSource, *, seed: int) -> Examples:
    """What is regressed on: real onsets and as many pseudo-onsets.

    How fluorescence goes on is known from many more moments than those at which something began, and the rates that tuning
    tells of both set them apart.
    """
    rng = np.random.default_rng(seed)
    repeats = min(_REPEATS, max(1, ROWS // max(len(real), 1)))
    drawn = [real.draw(ROWS // repeats, rng) for _ in range(repeats)]
    if len(pseudo):
        drawn.append(pseudo.draw(sum(map(len, drawn)), rng))
    return Examples.joined(drawn)


def start_shortcuts(forecaster: Forecaster, rows: Examples) -> None:
    """Set both shortcuts, and the heads beside them to zero; nothing changes where the rows have only one class."""
    with torch.no_grad():
        _start_activation(forecaster, rows)
        _start_response(forecaster, rows)


def _start_activation(forecaster: Forecaster, rows: Examples) -> None:
    network, active = forecaster.activation, rows.active.numpy()
    if active.all() or not active.any():
        return
    inputs, centre, scale = _standardised(network.shortcut, rows)
    fitted = _chosen(
        [LogisticRegression(C=strength, max_iter=1000) for strength in _LOGISTIC_C],
        inputs,
        active,
        rows,
        "neg_log_loss",
    )
    _set(network.shortcut, fitted.coef_, fitted.intercept_, centre=centre, scale=scale)
    network.head.weight.zero_()
    network.head.bias.zero_()


def _start_response(forecaster: Forecaster, rows: Examples) -> None:
    network, teacher = forecaster.response, forecaster.teacher
    inputs, centre, scale = _standardised(network.shortcut, rows)
    # With its last layer at zero the head gives every code the same chance, and the decoder one trace.
    last = cast(nn.Linear, network.head[-1])
    last.weight.zero_()
    last.bias.zero_()
    mean_code = teacher.codebook.codebook.mean(0).expand(1, forecaster.config.patches, -1)
    decoded = teacher.decode(mean_code)[0, forecaster.config.baseline_frames :]
    target = rows.trace[:, forecaster.config.baseline_frames :] - decoded
    fitted = _chosen(
        [Ridge(alpha=strength) for strength in _RIDGE_ALPHA],
        inputs,
        target.double().numpy(),
        rows,
        "neg_mean_squared_error",
    )
    _set(network.shortcut, fitted.coef_, fitted.intercept_, centre=centre, scale=scale)


def _chosen(models: list[Any], inputs: NDArray[np.float64], target: NDArray[Any], rows: Examples, scoring: str) -> Any:
    """Of models in order of falling penalty the best on moments that it was not fitted on; fitted on all of them."""
    moment = rows.moment.numpy()
    folds = min(_FOLDS, len(np.unique(moment)))
    if folds < 2:
        return models[0].fit(inputs, target)
    parts = list(GroupKFold(folds).split(inputs, target, moment))
    # A fold without both classes has no log-loss, or nothing to fit: then the strongest penalty stands.
    if target.dtype == np.bool_ and any(len(np.unique(target[rows])) < 2 for both in parts for rows in both):
        return models[0].fit(inputs, target)
    scores = [
        cross_val_score(model, inputs, target, cv=parts, scoring=scoring, error_score="raise").mean()
        for model in models
    ]
    return models[int(np.argmax(scores))].fit(inputs, target)


def _standardised(
    shortcut: Shortcut, rows: Examples
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The shortcut's inputs ``(B, inputs)`` with mean 0 and deviation 1 (of the population's level less), and what was taken
    from them.
    """
    inputs = shortcut.inputs(rows.baseline, rows.tuning, rows.level).double().numpy()
    centre, scale = inputs.mean(0), inputs.std(0) + 1e-9
    scale[shortcut.population] *= _POPULATION_PULL
    return (inputs - centre) / scale, centre, scale


def _set(
    shortcut: Shortcut,
    weight: NDArray[np.float64],
    bias: NDArray[np.float64],
    *,
    centre: NDArray[np.float64],
    scale: NDArray[np.float64],
) -> None:
    raw = weight / scale
    shortcut.linear.weight.copy_(torch.from_numpy(raw / SHORTCUT_GAIN))
    shortcut.linear.bias.copy_(torch.from_numpy((bias - raw @ centre) / SHORTCUT_GAIN))
