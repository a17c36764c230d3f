"""Small recordings of drifting gratings for tests: seeded, cheap, with a response that direction and baseline predict."""

from __future__ import annotations

import numpy as np

from quantformer.recording import Provenance, Recording, StimulusTable

GRATING = "drifting_gratings"
DIRECTIONS = (0, 90, 180, 270)


def small_recording(
    *,
    neurons: int = 3,
    trials: int = 40,
    rate_hz: float = 30.0,
    period_s: float = 3.0,
    sub_sessions: int = 0,
    pause_s: float = 8.0,
    jitter_s: float = 0.0,
    start_s: float = 5.0,
    telltale: bool = False,
    seed: int = 0,
) -> Recording:
    """Gratings of two seconds, one a period; neuron k answers direction k more often than others.

    With ``telltale`` the direction matters less than a bump in the third of a second before the onset.
    """
    rng = np.random.default_rng(seed)
    each = trials // max(sub_sessions, 1)
    block = np.minimum(np.arange(trials) // each, max(sub_sessions, 1) - 1)
    onset = start_s + np.arange(trials) * period_s + block * pause_s
    frames = int((onset[-1] + 4.0) * rate_hz)
    stamps = (np.arange(frames) + rng.uniform(-0.5, 0.5, frames) * jitter_s * rate_hz) / rate_hz
    direction = np.array([DIRECTIONS[i % len(DIRECTIONS)] for i in range(trials)])
    dff = rng.normal(0.0, 0.03, (frames, neurons))
    for trial in range(trials):
        chance = np.where(np.arange(neurons) % 4 == trial % 4, 0.8, 0.25)
        after = stamps - onset[trial]
        if telltale:
            bump = rng.random(neurons) < 0.4
            chance = np.where(bump, 0.9, 0.1)
            dff += 0.4 * ((after >= -1 / 3) & (after < 0.0))[:, None] * bump
        answers = rng.random(neurons) < chance
        shape = np.where(after > 0, np.exp(-np.maximum(after, 0.0)), 0.0)
        dff += shape[:, None] * answers * 0.6
    level = rng.uniform(80.0, 120.0, neurons)
    return Recording(
        fluorescence=(level * (1.0 + dff)).astype(np.float32),
        timestamps_s=stamps,
        neuron_ids=tuple(f"n{i:03d}" for i in range(neurons)),
        stimuli=StimulusTable.build(
            onset_s=onset,
            duration_s=np.full(trials, 2.0),
            category=[GRATING] * trials,
            stimulus_id=[f"dir={angle:03d}" for angle in direction],
            features={"direction_deg": direction.astype(float)},
            sub_session=block if sub_sessions else None,
        ),
        provenance=Provenance(origin="simulated", source="small.npz", subject="nobody"),
    )
