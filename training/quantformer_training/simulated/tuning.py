"""What a neuron answers to: directions, orientations, temporal and spatial frequency, phase, scenes, a receptive field."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantformer.recording import StimulusTable
from quantformer_training.simulated.schedule import DESCRIPTORS, NOISE_SHAPE, noise_frames, scene_descriptors

#: The answer begins this long after the stimulus and, for long stimuli, falls to a share of its start.
LATENCY_S, TRANSIENT_S, SUSTAINED = 0.05, 0.5, 0.6
#: Standard deviation of the logarithm of a neuron's highest rate: a few neurons answer far more than the others.
PEAK_SPREAD = 1.9


@dataclass(frozen=True, kw_only=True, eq=False)
class Tuning:
    """Per-neuron preferences, ``(neurons,)`` unless said otherwise; a ``*_peak_hz`` is the rate at the best stimulus."""

    direction_deg: NDArray[np.float64]
    sharpness: NDArray[np.float64]
    opposite: NDArray[np.float64]
    floor: NDArray[np.float64]
    temporal_octave: NDArray[np.float64]
    spatial_octave: NDArray[np.float64]
    phase_cycles: NDArray[np.float64]
    phase_depth: NDArray[np.float64]
    scene_weight: NDArray[np.float64]  # (neurons, descriptors)
    field_centre: NDArray[np.float64]  # (neurons, 2), in noise pixels
    field_sign: NDArray[np.float64]
    grating_peak_hz: NDArray[np.float64]
    scene_peak_hz: NDArray[np.float64]
    noise_peak_hz: NDArray[np.float64]

    @classmethod
    def draw(cls, *, neurons: int, rng: np.random.Generator) -> Tuning:
        """Heavy-tailed rates; about a quarter of the neurons hardly answer to a given category."""

        def heavy(median: float) -> NDArray[np.float64]:
            return median * np.exp(PEAK_SPREAD * rng.standard_normal(neurons))

        weight = rng.standard_normal((neurons, DESCRIPTORS))
        return cls(
            direction_deg=rng.uniform(0.0, 360.0, neurons),
            sharpness=np.exp(0.7 + 0.5 * rng.standard_normal(neurons)),
            opposite=rng.beta(1.5, 1.5, neurons),
            floor=rng.beta(1.0, 4.0, neurons),
            temporal_octave=np.log2(2.0) + 0.9 * rng.standard_normal(neurons),
            spatial_octave=np.log2(0.05) + 0.9 * rng.standard_normal(neurons),
            phase_cycles=rng.uniform(0.0, 1.0, neurons),
            phase_depth=rng.beta(1.0, 2.0, neurons),
            scene_weight=weight / np.linalg.norm(weight, axis=1, keepdims=True),
            field_centre=rng.uniform((2.0, 4.0), (NOISE_SHAPE[0] - 2.0, NOISE_SHAPE[1] - 4.0), (neurons, 2)),
            field_sign=rng.choice([-1.0, 1.0], neurons),
            grating_peak_hz=heavy(4.0),
            scene_peak_hz=heavy(6.0),
            noise_peak_hz=heavy(6.0),
        )

    def drive_hz(self, table: StimulusTable) -> NDArray[np.float64]:
        """Rate ``(presentations, neurons)`` in Hz that each presentation adds at its best moment, before calibration."""
        rows = len(table)
        drive = np.zeros((rows, len(self.direction_deg)))
        category = np.array(table.category)
        shown = _column(table, "blank", rows) != 1.0
        for name in dict.fromkeys(table.category):
            at = np.flatnonzero((category == name) & shown)
            if name == "drifting_gratings":
                angle = _column(table, "direction_deg", rows)[at, None]
                octave = np.log2(_column(table, "temporal_frequency_hz", rows)[at, None])
                spatial = np.log2(_column(table, "spatial_frequency_cpd", rows)[at, None])
                match = (
                    self._angle(angle)
                    * _bell(octave - self.temporal_octave, 1.4)
                    * _bell(spatial - self.spatial_octave, 1.4)
                )
                drive[at] = self.grating_peak_hz * match
            elif name == "static_gratings":
                angle = _column(table, "orientation_deg", rows)[at, None]
                spatial = np.log2(_column(table, "spatial_frequency_cpd", rows)[at, None])
                phase = _column(table, "phase_cycles", rows)[at, None]
                match = np.maximum(self._angle(angle), self._angle(angle + 180.0)) * _bell(
                    spatial - self.spatial_octave, 1.0
                )
                wave = 1.0 + self.phase_depth * (np.cos(2 * np.pi * (phase - self.phase_cycles)) - 1.0) / 2.0
                drive[at] = self.grating_peak_hz * match * wave
            elif name == "natural_scenes":
                descriptors = np.stack([_column(table, f"image_{k}", rows)[at] for k in range(DESCRIPTORS)], axis=1)
                best = (scene_descriptors() @ self.scene_weight.T).max(axis=0)
                match = np.maximum(descriptors @ self.scene_weight.T - 0.3, 0.0) / np.maximum(best - 0.3, 0.1)
                drive[at] = self.scene_peak_hz * match**2
            elif name == "locally_sparse_noise":
                which = np.array([int(table.stimulus_id[row].rsplit("/", 1)[1]) for row in at])
                drive[at] = self.noise_peak_hz * self._field(noise_frames(int(np.sum(category == name)))[which])
        return drive

    def _angle(self, degrees: NDArray[np.float64]) -> NDArray[np.float64]:
        turn = np.deg2rad(degrees - self.direction_deg)
        one, other = np.exp(self.sharpness * (np.cos(turn) - 1.0)), np.exp(self.sharpness * (-np.cos(turn) - 1.0))
        return self.floor + (1.0 - self.floor) * np.maximum(one, self.opposite * other)

    def _field(self, frames: NDArray[np.int8]) -> NDArray[np.float64]:
        rows, columns = np.mgrid[: NOISE_SHAPE[0], : NOISE_SHAPE[1]] + 0.5
        away = (rows - self.field_centre[:, 0, None, None]) ** 2 + (columns - self.field_centre[:, 1, None, None]) ** 2
        weight = np.exp(-away / (2 * 1.5**2))
        weight /= np.sort(weight.reshape(len(weight), -1), axis=1)[:, -4:].sum(axis=1)[:, None, None]
        seen = frames.reshape(len(frames), -1).astype(np.float64) @ weight.reshape(len(weight), -1).T
        answer: NDArray[np.float64] = np.clip(seen * self.field_sign, 0.0, 1.0)
        return answer


def _column(table: StimulusTable, name: str, rows: int) -> NDArray[np.float64]:
    return table.features.get(name, np.full(rows, np.nan))


def _bell(octaves: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    return np.exp(-0.5 * (octaves / width) ** 2)


def envelope(elapsed_s: NDArray[np.float64], duration_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the drive at each moment, from the seconds since the onset and the presentation's duration."""
    since = elapsed_s - LATENCY_S
    lasting = SUSTAINED + (1.0 - SUSTAINED) * np.exp(-np.maximum(since, 0.0) / TRANSIENT_S)
    return np.where((since >= 0.0) & (since < duration_s), lasting, 0.0)
