"""When which stimulus is shown: the Allen Visual Coding sessions, and a short one for demonstrations.

Frame counts are the real ones of `allen_511510667` for session A; movies are grey screen here and have no rows in the
table. Stimulus ids are spelled as for real files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quantformer.recording import StimulusTable
from quantformer_training.image_features import image_features

Category = Literal["drifting_gratings", "static_gratings", "natural_scenes", "locally_sparse_noise", "spontaneous"]

DIRECTIONS_DEG = tuple(45.0 * k for k in range(8))
TEMPORAL_HZ = (1.0, 2.0, 4.0, 8.0, 15.0)
ORIENTATIONS_DEG = tuple(30.0 * k for k in range(6))
SPATIAL_CPD = (0.02, 0.04, 0.08, 0.16, 0.32)
PHASES_CYCLES = (0.0, 0.25, 0.5, 0.75)
SCENES = 118
#: Numbers that describe a scene; they stand in the table as ``image_0`` and so on, as do a noise frame's 56.
DESCRIPTORS = 16
NOISE_SHAPE = (16, 28)
SPOTS = 11
#: Scenes and noise frames are the same for every mouse, as in the real study.
_IMAGE_SEED = 118


@dataclass(frozen=True, kw_only=True)
class Block:
    """A sub-session: ``presentations`` of one category, the first at ``start_s``, one every ``period_s`` seconds."""

    category: Category
    start_s: float
    presentations: int
    on_s: float
    period_s: float
    sub_session: int


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The blocks of a session in order. Conditions are shown equally often over all blocks of a category, shuffled; what
    is left over becomes blanks. ``blank_fraction`` sets more aside. ``temporal_hz`` are those of the drifting gratings.
    """

    name: str
    duration_s: float
    blocks: tuple[Block, ...]
    temporal_hz: tuple[float, ...] = TEMPORAL_HZ
    blank_fraction: Mapping[str, float] = field(default_factory=dict, hash=False)

    def table(self, rng: np.random.Generator) -> StimulusTable:
        """One random order of the stimuli."""
        rows: list[dict[str, float]] = []
        onset: list[float] = []
        duration: list[float] = []
        category: list[str] = []
        ids: list[str] = []
        sub: list[int] = []
        for name in dict.fromkeys(block.category for block in self.blocks):
            blocks = [block for block in self.blocks if block.category == name]
            wanted = sum(block.presentations for block in blocks)
            conditions = self._conditions(name, wanted)
            usable = wanted - round(wanted * self.blank_fraction.get(name, 0.0))
            shown = conditions * (usable // len(conditions))
            shown += [("blank", {"blank": 1.0})] * (wanted - len(shown))
            order = range(wanted) if name == "locally_sparse_noise" else rng.permutation(wanted)
            drawn = iter([shown[k] for k in order])
            for block in blocks:
                for k in range(block.presentations):
                    label, features = next(drawn)
                    onset.append(block.start_s + k * block.period_s)
                    duration.append(block.on_s)
                    category.append(name)
                    ids.append(f"{name}/{label}" if label else name)
                    rows.append(features)
                    sub.append(block.sub_session)
        names = sorted({key for row in rows for key in row})
        return StimulusTable.build(
            onset_s=onset,
            duration_s=duration,
            category=category,
            stimulus_id=ids,
            features={key: [row.get(key, np.nan) for row in rows] for key in names},
            sub_session=sub,
        )

    def _conditions(self, category: Category, wanted: int) -> list[tuple[str, dict[str, float]]]:
        if category == "drifting_gratings":
            return [
                (
                    f"dir={direction:03g},tf={hertz:g}",
                    {
                        "direction_deg": direction,
                        "temporal_frequency_hz": hertz,
                        "spatial_frequency_cpd": 0.04,
                        "blank": 0.0,
                    },
                )
                for direction in DIRECTIONS_DEG
                for hertz in self.temporal_hz
            ]
        if category == "static_gratings":
            return [
                (
                    f"ori={orientation:03g},phase={phase:g},sf={cpd:g}",
                    {"orientation_deg": orientation, "spatial_frequency_cpd": cpd, "phase_cycles": phase, "blank": 0.0},
                )
                for orientation in ORIENTATIONS_DEG
                for cpd in SPATIAL_CPD
                for phase in PHASES_CYCLES
            ]
        if category == "spontaneous":
            return [("", {})]
        scenes = category == "natural_scenes"
        images = scene_descriptors() if scenes else image_features(noise_frames(wanted), where=category)
        return [(f"{k:04d}", {f"image_{m}": float(x) for m, x in enumerate(row)}) for k, row in enumerate(images)]


def scene_descriptors() -> NDArray[np.float64]:
    """Random features ``(118, 16)`` that stand for the natural scenes; standard normal."""
    return np.random.default_rng(_IMAGE_SEED).standard_normal((SCENES, DESCRIPTORS))


def noise_frames(frames: int) -> NDArray[np.int8]:
    """Sparse-noise frames int8 ``(frames, 16, 28)``: grey 0 with eleven light (1) or dark (-1) spots of two by two."""
    rng = np.random.default_rng(_IMAGE_SEED + 1)
    grid = np.zeros((frames, NOISE_SHAPE[0] // 2 * NOISE_SHAPE[1] // 2), np.int8)
    where = np.argpartition(rng.random(grid.shape), SPOTS, axis=1)[:, :SPOTS]
    np.put_along_axis(grid, where, rng.choice(np.array([-1, 1], np.int8), size=where.shape), axis=1)
    coarse = grid.reshape(frames, NOISE_SHAPE[0] // 2, NOISE_SHAPE[1] // 2)
    return coarse.repeat(2, axis=1).repeat(2, axis=2)


def _grey(*, start_s: float, duration_s: float) -> Block:
    return Block(
        category="spontaneous", start_s=start_s, presentations=1, on_s=duration_s, period_s=duration_s, sub_session=0
    )


def _blocks(
    category: Category, *, starts_s: Sequence[float], presentations: Sequence[int], on_s: float, period_s: float
) -> tuple[Block, ...]:
    return tuple(
        Block(category=category, start_s=start, presentations=count, on_s=on_s, period_s=period_s, sub_session=k)
        for k, (start, count) in enumerate(zip(starts_s, presentations, strict=True))
    )


#: Drifting gratings, 8 directions x 5 temporal frequencies x 15 and 28 blanks, 2 s on, 1 s off.
ALLEN_A = Schedule(
    name="allen_a",
    duration_s=115_730 / 30.0,
    blocks=(
        *_blocks(
            "drifting_gratings",
            starts_s=(737 / 30.0, 48_707 / 30.0, 94_868 / 30.0),
            presentations=(200, 200, 228),
            on_s=2.0,
            period_s=3.0,
        ),
        _grey(start_s=2_240.0, duration_s=300.0),
    ),
)
#: Static gratings, 6 orientations x 5 spatial frequencies x 4 phases, and 118 natural scenes x 50, 0.25 s back to back.
ALLEN_B = Schedule(
    name="allen_b",
    duration_s=3_780.0,
    blocks=_blocks(
        "static_gratings",
        starts_s=(30.0, 1_345.0, 2_660.0),
        presentations=(2_000, 2_000, 2_000),
        on_s=0.25,
        period_s=0.25,
    )
    + _blocks(
        "natural_scenes",
        starts_s=(545.0, 1_860.0, 3_175.0),
        presentations=(1_980, 1_980, 1_990),
        on_s=0.25,
        period_s=0.25,
    )
    + (_grey(start_s=1_043.0, duration_s=300.0),),
    blank_fraction={"static_gratings": 0.02},
)
#: Locally sparse noise, 8880 frames of 0.25 s, each shown once.
ALLEN_C = Schedule(
    name="allen_c",
    duration_s=3_200.0,
    blocks=(
        *_blocks(
            "locally_sparse_noise",
            starts_s=(30.0, 1_085.0, 2_430.0),
            presentations=(2_960, 2_960, 2_960),
            on_s=0.25,
            period_s=0.25,
        ),
        _grey(start_s=778.0, duration_s=300.0),
    ),
)


def short_schedule(*, presentations: int = 82) -> Schedule:
    """Three sub-sessions of drifting gratings, 8 directions at 2 Hz and a few blanks, 2 s on, 1 s off; 12.7 minutes."""
    length = 3.0 * presentations + 8.0
    return Schedule(
        name=f"short_{presentations}",
        duration_s=3 * length + 6.0,
        blocks=_blocks(
            "drifting_gratings",
            starts_s=[6.0 + k * length for k in range(3)],
            presentations=[presentations] * 3,
            on_s=2.0,
            period_s=3.0,
        ),
        temporal_hz=(2.0,),
    )
