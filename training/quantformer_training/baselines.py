"""Simple predictors that a network has to beat, each fitted on training rows only.

Every baseline has ``fit(train)``, which returns itself, and ``predict(rows)``, which reads only the baseline, its F0, the
neuron, the stimulus and, in the ``_population`` ones, the context of the rows asked about. Rates and mean responses that
enter a regression as features come, for training rows, from the other blocks of trials (`out_of_fold`); its setting is
chosen over the same blocks. One budget for all regressions: at most `MOST_ROWS` rows and six settings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from quantformer.metrics import log_loss, squared_error
from quantformer_training.features import UsualF0, baseline_features, context_features
from quantformer_training.means import ShrunkMeans, out_of_fold
from quantformer_training.rows import Rows

#: Blocks of consecutive training trials for features out of fold and for choosing a regularisation.
FOLDS = 5
#: Of more training rows a regression is fitted on a seeded choice of this many; rates and means are over all of them.
MOST_ROWS = 60_000

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


@dataclass(frozen=True, kw_only=True, eq=False)
class _Known:
    """What training rows say of each neuron."""

    means: ShrunkMeans
    usual: UsualF0


class _Tuned(ABC):
    """A regression on the baseline's features, F0 against the neuron's usual one and both shrunk means; its setting is chosen
    over blocks of training trials. With ``population`` it also sees the rows' context.
    """

    settings: tuple[Any, ...]
    population = False

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
        """Choose the setting, then fit on all training rows, or on `MOST_ROWS` of them."""
        fold, chosen = train.trial_folds(FOLDS), _chosen(len(train))
        losses = np.zeros(len(self.settings))
        for block in range(int(fold.max(initial=-1)) + 1):
            held, rest = (fold == block) & chosen, fold != block
            if not rest.any() or not held.any():
                continue
            features, rows = self._own(train.select(rest), chosen[rest])
            asked, scored = self._asked(train.select(held), self._know(train.select(rest))), train.select(held)
            for index, setting in enumerate(self.settings):
                losses[index] += len(scored) * self._loss(self._train(setting, features, rows)(asked), scored)
        self._known = self._know(train)
        self.setting = self.settings[int(losses.argmin())]
        self._model = self._train(self.setting, *self._own(train, chosen))
        return self

    def _predict(self, rows: Rows) -> Floats:
        return self._model(self._asked(rows, self._known))

    def _know(self, rows: Rows) -> _Known:
        return _Known(means=ShrunkMeans.fit(self._values(rows), rows=rows), usual=UsualF0.fit(rows))

    def _asked(self, rows: Rows, known: _Known) -> Floats:
        return np.concatenate([self._plain(rows, known.usual), known.means.features(rows)], axis=1)

    def _own(self, rows: Rows, chosen: NDArray[np.bool_]) -> tuple[Floats, Rows]:
        """Features of the chosen training rows, and those rows."""
        means = out_of_fold(rows, values=self._values, folds=FOLDS, chosen=chosen)
        usual, rows = UsualF0.fit(rows), rows.select(chosen)
        return np.concatenate([self._plain(rows, usual), means], axis=1), rows

    def _plain(self, rows: Rows, usual: UsualF0) -> Floats:
        columns = [baseline_features(rows), usual.features(rows)]
        return np.concatenate([*columns, context_features(rows)] if self.population else columns, axis=1)


def _chosen(rows: int) -> NDArray[np.bool_]:
    """Which rows a regression is fitted on: all, or a seeded `MOST_ROWS` of them."""
    chosen = np.ones(rows, bool)
    if rows > MOST_ROWS:
        chosen[np.random.default_rng(0).choice(rows, rows - MOST_ROWS, replace=False)] = False
    return chosen


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

    title = "logistic regression: binned baseline, its spread and end, F0, both rates"
    settings = (0.01, 0.1, 1.0, 10.0)

    @staticmethod
    def _train(setting: Any, features: Floats, rows: Rows) -> Model:
        return _classify(LogisticRegression(C=setting, max_iter=1000), features, rows.active)


class BoostedTrees(_TunedClassifier):
    """Gradient-boosted trees; a setting is their number and the leaves of each."""

    title = "boosted trees: binned baseline, its spread and end, F0, both rates"
    settings = ((40, 4), (40, 8), (120, 4), (120, 8))

    @staticmethod
    def _train(setting: Any, features: Floats, rows: Rows) -> Model:
        trees, leaves = setting
        classifier = HistGradientBoostingClassifier(
            max_iter=trees, max_leaf_nodes=leaves, learning_rate=0.05, early_stopping=False, random_state=0
        )
        return _classify(classifier, features, rows.active)


class LogisticPopulation(Logistic):
    """`Logistic` that also sees the context."""

    title = "logistic regression, also on the population's mean and components and on running"
    population = True


class BoostedTreesPopulation(BoostedTrees):
    """`BoostedTrees` that also see the context."""

    title = "boosted trees, also on the population's mean and components and on running"
    population = True


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

    title = "ridge on baseline, F0 and mean responses"
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
        frames = len(self._known.means.population)
        return self._predict(rows).astype(np.float32) if len(rows) else np.zeros((0, frames), np.float32)


class RidgePopulation(RidgeForecast):
    """`RidgeForecast` that also sees the context."""

    title = "ridge, also on the population's mean and components and on running"
    population = True


#: Every baseline by the key that reports use. Those of `POPULATION_BASELINES` need rows that have a context.
ACTIVATION_BASELINES: Mapping[str, Callable[[], ActivationBaseline]] = MappingProxyType(
    {
        "base_rate": BaseRate,
        "neuron_stimulus_rate": NeuronStimulusRate,
        "last_frames": LastFrames,
        "boosted_trees": BoostedTrees,
        "logistic": Logistic,
        "trees_population": BoostedTreesPopulation,
        "logistic_population": LogisticPopulation,
    }
)
FORECAST_BASELINES: Mapping[str, Callable[[], ForecastBaseline]] = MappingProxyType(
    {
        "zero": Zero,
        "last_value": LastValue,
        "neuron_mean": NeuronMean,
        "neuron_stimulus_mean": NeuronStimulusMean,
        "ridge": RidgeForecast,
        "ridge_population": RidgePopulation,
    }
)
POPULATION_BASELINES = frozenset({"trees_population", "logistic_population", "ridge_population"})


def activation_baselines(train: Rows) -> dict[str, ActivationBaseline]:
    """Every activation baseline that these training rows suffice for, fitted on them."""
    return {key: make().fit(train) for key, make in ACTIVATION_BASELINES.items() if _suffices(train, key)}


def forecast_baselines(train: Rows) -> dict[str, ForecastBaseline]:
    """Every forecast baseline that these training rows suffice for, fitted on them."""
    return {key: make().fit(train) for key, make in FORECAST_BASELINES.items() if _suffices(train, key)}


def _suffices(train: Rows, key: str) -> bool:
    return train.context is not None or key not in POPULATION_BASELINES
