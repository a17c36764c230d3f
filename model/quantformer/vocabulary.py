"""How a stimulus becomes numbers: the feature recipe behind ``[STIM] = W . features + id vector``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import DataError

#: Category of a question about a moment at which nothing begins: between stimuli, in a blank, or spontaneous.
NOTHING = "nothing"
#: Prefix of a category for a moment inside a presentation of that category.
ONGOING = "ongoing:"
#: Largest size of a feature; beyond it a number is a mistake, and in float32 soon no number at all.
LARGEST_FEATURE = 1e9


def _angle(degrees: float, *, fold: int) -> tuple[float, float]:
    radians = math.radians(degrees) * fold
    return math.sin(radians), math.cos(radians)


@dataclass(frozen=True, kw_only=True)
class StimulusRecipe:
    """Feature recipe, held in the bundle: which categories training saw, and which image descriptors they carry.

    A stimulus is encoded as: one indicator a category; sin and cos of direction and of twice the orientation (a
    direction has an orientation too); log2 of temporal frequency over 2 Hz and of spatial frequency over 0.04 cycles a
    degree; sin and cos of the phase; contrast (1 where unsaid); the blank flag; then the image descriptors as they are.
    A feature that does not apply is 0.
    """

    categories: tuple[str, ...]
    image_features: tuple[str, ...] = ()

    _GRATING = (
        "direction_sin", "direction_cos", "orientation_sin", "orientation_cos", "log2_temporal_frequency",
        "log2_spatial_frequency", "phase_sin", "phase_cos", "contrast", "blank",
    )  # fmt: skip
    _KNOWN = frozenset(
        {
            "direction_deg", "orientation_deg", "temporal_frequency_hz", "spatial_frequency_cpd", "phase_cycles",
            "contrast", "blank",
        }
    )  # fmt: skip

    @property
    def width(self) -> int:
        """Length of an encoded stimulus."""
        return len(self.categories) + len(self._GRATING) + len(self.image_features)

    @property
    def names(self) -> tuple[str, ...]:
        """What each number of an encoded stimulus is."""
        return (*(f"category={name}" for name in self.categories), *self._GRATING, *self.image_features)

    @property
    def tuning_width(self) -> int:
        """Length of `tuning_features` less the stimulus ids."""
        rest = self.width - len(self.categories)
        return len(self.categories) * (1 + rest) + rest

    def tuning_features(
        self, encoded: NDArray[np.float32], *, id_row: NDArray[np.int64], ids: int
    ) -> NDArray[np.float32]:
        """Encoded stimuli ``(n, width)`` with a constant, apart by category, then without a constant for all categories, and an
        indicator an id: ``(n, tuning_width + ids)``. ``id_row`` int64 ``(n,)`` is -1 where a stimulus has no id.

        A neuron's tuning is linear in these: what categories have in common, and what each adds to it. A neuron that prefers
        a direction at an onset does so two seconds later, too.
        """
        indicator, rest = np.split(encoded, [len(self.categories)], axis=-1)
        with_constant = np.concatenate([np.ones_like(rest[..., :1]), rest], axis=-1)
        apart = indicator[..., :, None] * with_constant[..., None, :]
        known = id_row[:, None] == np.arange(ids)
        apart = apart.reshape(len(encoded), self.tuning_width - rest.shape[-1])
        return np.concatenate([apart, rest, known], axis=1).astype(np.float32)

    def tuning_constants(self, *, ids: int) -> NDArray[np.bool_]:
        """Which of `tuning_features` are a category's constant, ``(tuning_width + ids,)``."""
        rest = self.width - len(self.categories)
        first = np.arange(1 + rest) == 0
        return np.concatenate([np.tile(first, len(self.categories)), np.zeros(rest + ids, bool)])

    @classmethod
    def covering(cls, categories: Sequence[str], feature_names: Sequence[str]) -> StimulusRecipe:
        """The recipe for these categories; features outside the grating vocabulary are taken as image descriptors."""
        images = sorted(set(feature_names) - cls._KNOWN)
        return cls(categories=tuple(sorted(set(categories))), image_features=tuple(images))

    def encode(self, *, category: str, features: Mapping[str, float]) -> NDArray[np.float32]:
        """Encode one stimulus to float32 ``(width,)``.

        Raises:
            DataError: a category or feature that training did not see, or a value that is not a finite number.
        """
        if category not in self.categories:
            raise DataError(f"stimulus category {category!r} was not in training; known: {', '.join(self.categories)}")
        known = self._KNOWN | set(self.image_features)
        for name, value in features.items():
            if name not in known:
                raise DataError(f"stimulus feature {name!r} is not in the recipe; known: {', '.join(sorted(known))}")
            if not abs(value) <= LARGEST_FEATURE:
                raise DataError(
                    f"stimulus feature {name!r} is {value}; give a number of at most {LARGEST_FEATURE:.0e} or leave it out"
                )
        for name in ("temporal_frequency_hz", "spatial_frequency_cpd"):
            if features.get(name, 1.0) <= 0:
                raise DataError(f"stimulus feature {name!r} is {features[name]}; a positive number was expected")
        values = dict.fromkeys(self._GRATING, 0.0)
        if "direction_deg" in features:
            values["direction_sin"], values["direction_cos"] = _angle(features["direction_deg"], fold=1)
        orientation = features.get("orientation_deg", features.get("direction_deg"))
        if orientation is not None:
            values["orientation_sin"], values["orientation_cos"] = _angle(orientation, fold=2)
        if "temporal_frequency_hz" in features:
            values["log2_temporal_frequency"] = math.log2(features["temporal_frequency_hz"] / 2.0)
        if "spatial_frequency_cpd" in features:
            values["log2_spatial_frequency"] = math.log2(features["spatial_frequency_cpd"] / 0.04)
        if "phase_cycles" in features:
            values["phase_sin"], values["phase_cos"] = _angle(360.0 * features["phase_cycles"], fold=1)
        values["blank"] = features.get("blank", 0.0)
        values["contrast"] = features.get("contrast", 0.0 if values["blank"] else 1.0)
        indicator = [float(name == category) for name in self.categories]
        images = [features.get(name, 0.0) for name in self.image_features]
        return np.array([*indicator, *values.values(), *images], dtype=np.float32)
