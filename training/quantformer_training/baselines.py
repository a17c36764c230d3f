"""Simple predictors that a network has to beat, each fitted on training rows only.

Every baseline has ``fit(train)``, which returns itself, and ``predict(rows)``, which reads only the baseline, the neuron
and the stimulus of the rows asked about. Rates and mean responses that enter a regression as features come, for training
rows, from the other blocks of trials (`out_of_fold`); its setting is chosen over the same blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from quantformer.metrics import log_loss, squared_error
from quantformer_training.means import ShrunkMeans, out_of_fold
from quantformer_training.rows import Rows

#: Bins of the baseline and frames of its end that enter the regressions.
BASELINE_BINS, END_FRAMES = 8, 5
#: Blocks of consecutive training trials for features out of fold and for choosing a regularisation.
FOLDS = 5

Floats = NDArray[np.float64]
#: A fitted regression: features ``(rows, columns)`` to predictions ``(rows, ...)``.
Model = Callable[[Floats], Floats]


class ActivationBaseline(Protocol):
    """Predicts the probability that each row is active."""

    title: str

    def fit(self, train: Rows) -> Self:
        """Learn from training rows."""

    def predict(self, rows: Rows) -> Floats:
        """Probabilities ``(rows,)``."""


class ForecastBaseline(Protocol):
    """Predicts the dF/F response of each row."""

    title: str

    def fit(self, train: Rows) -> Self:
        """Learn from training rows."""

    def predict(self, rows: Rows) -> NDArray[np.float32]:
        """Traces ``(rows, frames)``."""


def _rates(rows: Rows) -> Floats:
    return rows.active[:, None].astype(np.float64)


def _responses(rows: Rows) -> Floats:
    return rows.response.astype(np.float64)


def baseline_features(rows: Rows) -> Floats:
    """What a regression sees of the baseline ``(rows, 10)``: means of 8 equal bins, spread, and mean of the last 5 frames.

    dF/F is already relative to F0, so the last of them is the ratio of the end to F0, less one.
    """
    baseline = rows.baseline.astype(np.float64)
    bins = [part.mean(axis=1) for part in np.array_split(baseline, BASELINE_BINS, axis=1)]
    return np.stack([*bins, baseline.std(axis=1), baseline[:, -END_FRAMES:].mean(axis=1)], axis=1)


class BaseRate:
    """How often the neuron was active: knows who it is and nothing about the trial."""

    title = "neuron's base rate"

    def fit(self, train: Rows) -> Self:
        """Count."""
        self._means = ShrunkMeans.fit(_rates(train), rows=train)
        return self

    def predict(self, rows: Rows) -> Floats:
        """Probabilities ``(rows,)``."""
        return self._means.by_neuron(rows)[:, 0]


class NeuronStimulusRate:
    """How often the neuron was active at this stimulus: the reference of every skill."""

    title = "neuron x stimulus rate"

    def fit(self, train: Rows) -> Self:
        """Count."""
        self._means = ShrunkMeans.fit(_rates(train), rows=train)
        return self

    def predict(self, rows: Rows) -> Floats:
        """Probabilities ``(rows,)``."""
        return self._means.by_pair(rows)[:, 0]


class LastFrames:
    """Logistic regression on the last 5 frames over F0: a transient already under way (NOTES, pitfall 8)."""

    title = "last 5 frames over F0"

    def fit(self, train: Rows) -> Self:
        """Fit slope and intercept."""
        self._model = _classify(LogisticRegression(C=1.0), self._features(train), train.active)
        return self

    def predict(self, rows: Rows) -> Floats:
        """Probabilities ``(rows,)``."""
        return self._model(self._features(rows))

    @staticmethod
    def _features(rows: Rows) -> Floats:
        return baseline_features(rows)[:, -1:]


def _classify(classifier: Any, features: Floats, active: NDArray[np.bool_]) -> Model:
    """Fit on standardised features; training rows of a single class give their smoothed rate everywhere."""
    if active.all() or not active.any():
        rate = (float(active.sum()) + 0.5) / (len(active) + 1.0)
        return lambda asked: np.full(len(asked), rate)
    fitted = make_pipeline(StandardScaler(), classifier).fit(features, active)
    return lambda asked: np.asarray(fitted.predict_proba(asked)[:, 1] if len(asked) else [], dtype=np.float64)


class _Tuned(ABC):
    """A regression on the baseline's features and both shrunk means, its setting chosen over blocks of training trials."""

    settings: tuple[Any, ...]

    @staticmethod
    @abstractmethod
    def _values(rows: Rows) -> Floats:
        """What the means are of, ``(rows, width)``."""

    @staticmethod
    @abstractmethod
    def _train(setting: Any, features: Floats, rows: Rows) -> Model:
        """A model with one setting, from features to predictions."""

    @staticmethod
    @abstractmethod
    def _loss(predicted: Floats, rows: Rows) -> float:
        """Mean loss of predictions."""

    def fit(self, train: Rows) -> Self:
        """Choose the setting, then fit on all training rows."""
        fold = train.trial_folds(FOLDS)
        losses = np.zeros(len(self.settings))
        for block in range(int(fold.max(initial=-1)) + 1):
            rest, held = train.select(fold != block), train.select(fold == block)
            if not len(rest):
                continue
            features, asked = self._own(rest), self._asked(held, ShrunkMeans.fit(self._values(rest), rows=rest))
            for index, setting in enumerate(self.settings):
                losses[index] += len(held) * self._loss(self._train(setting, features, rest)(asked), held)
        self._means = ShrunkMeans.fit(self._values(train), rows=train)
        self.setting = self.settings[int(losses.argmin())]
        self._model = self._train(self.setting, self._own(train), train)
        return self

    def _predict(self, rows: Rows) -> Floats:
        return self._model(self._asked(rows, self._means))

    @staticmethod
    def _asked(rows: Rows, means: ShrunkMeans) -> Floats:
        return np.concatenate([baseline_features(rows), means.features(rows)], axis=1)

    def _own(self, rows: Rows) -> Floats:
        return np.concatenate([baseline_features(rows), out_of_fold(rows, values=self._values, folds=FOLDS)], axis=1)


class _TunedClassifier(_Tuned):
    _values = staticmethod(_rates)

    @staticmethod
    def _loss(predicted: Floats, rows: Rows) -> float:
        return log_loss(predicted, rows.active)

    def predict(self, rows: Rows) -> Floats:
        """Probabilities ``(rows,)``."""
        return self._predict(rows)


class Logistic(_TunedClassifier):
    """Logistic regression; a setting is the inverse strength of its penalty."""

    title = "logistic regression: binned baseline, its spread and end, both rates"
    settings = (0.01, 0.1, 1.0, 10.0)

    @staticmethod
    def _train(setting: Any, features: Floats, rows: Rows) -> Model:
        return _classify(LogisticRegression(C=setting, max_iter=1000), features, rows.active)


class BoostedTrees(_TunedClassifier):
    """Gradient-boosted trees; a setting is their number and the leaves of each."""

    title = "boosted trees: binned baseline, its spread and end, both rates"
    settings = ((40, 4), (40, 8), (120, 4), (120, 8))

    @staticmethod
    def _train(setting: Any, features: Floats, rows: Rows) -> Model:
        trees, leaves = setting
        classifier = HistGradientBoostingClassifier(
            max_iter=trees, max_leaf_nodes=leaves, learning_rate=0.05, early_stopping=False, random_state=0
        )
        return _classify(classifier, features, rows.active)


class Zero:
    """The fluorescence stays at F0."""

    title = "F0 persists (zero)"

    def fit(self, train: Rows) -> Self:
        """Remember the length of a response."""
        self._frames = train.response.shape[1]
        return self

    def predict(self, rows: Rows) -> NDArray[np.float32]:
        """Zeros ``(rows, frames)``."""
        return np.zeros((len(rows), self._frames), np.float32)


class LastValue:
    """The last frame of the baseline persists."""

    title = "last value persists"

    def fit(self, train: Rows) -> Self:
        """Remember the length of a response."""
        self._frames = train.response.shape[1]
        return self

    def predict(self, rows: Rows) -> NDArray[np.float32]:
        """Constant traces ``(rows, frames)``."""
        return np.repeat(rows.baseline[:, -1:], self._frames, axis=1)


class NeuronMean:
    """The neuron's mean response."""

    title = "neuron's mean response"

    def fit(self, train: Rows) -> Self:
        """Average."""
        self._means = ShrunkMeans.fit(_responses(train), rows=train)
        return self

    def predict(self, rows: Rows) -> NDArray[np.float32]:
        """Traces ``(rows, frames)``."""
        return self._means.by_neuron(rows).astype(np.float32)


class NeuronStimulusMean:
    """The neuron's mean response to this stimulus."""

    title = "neuron x stimulus mean response"

    def fit(self, train: Rows) -> Self:
        """Average."""
        self._means = ShrunkMeans.fit(_responses(train), rows=train)
        return self

    def predict(self, rows: Rows) -> NDArray[np.float32]:
        """Traces ``(rows, frames)``."""
        return self._means.by_pair(rows).astype(np.float32)


class RidgeForecast(_Tuned):
    """Ridge regression of the whole trace; a setting is its penalty."""

    title = "ridge on baseline and mean responses"
    settings = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)
    _values = staticmethod(_responses)

    @staticmethod
    def _train(setting: Any, features: Floats, rows: Rows) -> Model:
        fitted = Ridge(alpha=setting).fit(features, _responses(rows))
        return lambda asked: np.asarray(fitted.predict(asked), dtype=np.float64).reshape(len(asked), -1)

    @staticmethod
    def _loss(predicted: Floats, rows: Rows) -> float:
        return float(squared_error(predicted, rows.response).mean())

    def predict(self, rows: Rows) -> NDArray[np.float32]:
        """Traces ``(rows, frames)``."""
        frames = len(self._means.population)
        return self._predict(rows).astype(np.float32) if len(rows) else np.zeros((0, frames), np.float32)


#: Every baseline by the key that reports use.
ACTIVATION_BASELINES: Mapping[str, Callable[[], ActivationBaseline]] = MappingProxyType(
    {
        "base_rate": BaseRate,
        "neuron_stimulus_rate": NeuronStimulusRate,
        "last_frames": LastFrames,
        "boosted_trees": BoostedTrees,
        "logistic": Logistic,
    }
)
FORECAST_BASELINES: Mapping[str, Callable[[], ForecastBaseline]] = MappingProxyType(
    {
        "zero": Zero,
        "last_value": LastValue,
        "neuron_mean": NeuronMean,
        "neuron_stimulus_mean": NeuronStimulusMean,
        "ridge": RidgeForecast,
    }
)
