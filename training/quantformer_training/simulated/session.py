"""Simulated sessions: a mouse shown a schedule, or measured spikes seen through a simulated microscope."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import RecordingError
from quantformer.recording import Provenance, Recording, StimulusTable
from quantformer_training.simulated.activity import Latent, Spikes, Timeline, draw_spikes
from quantformer_training.simulated.indicator import IndicatorName
from quantformer_training.simulated.mouse import RATE_HZ, Mouse, MouseConfig, draw_neurons, stream
from quantformer_training.simulated.optics import photograph
from quantformer_training.simulated.schedule import ALLEN_A, ALLEN_B, ALLEN_C, Schedule, short_schedule

#: The paper's label, for calibration: frames after the onset, frames of F0, and the least mean dF/F.
_RESPONSE, _F0, _THRESHOLD = 60, 60, 0.10


@dataclass(frozen=True, kw_only=True, eq=False)
class Truth:
    """What no experimenter sees; arrays are ``(frames, neurons)`` unless said otherwise.

    ``spikes`` uint8 counts a frame; ``calcium_slow`` and ``calcium_fast`` float32, whose scaled difference is calcium;
    ``dff`` float32, the noise-free relative change; ``resting`` float32, fluorescence without calcium; ``noise`` float32,
    standard deviation of the measured fluorescence; ``motion`` float32 ``(frames,)``. For simulated sessions also
    ``rate_hz`` and ``recent`` spikes float32, the ``latent`` state and the ``timeline``; None where spikes were given.
    """

    spikes: NDArray[np.uint8]
    calcium_slow: NDArray[np.float32]
    calcium_fast: NDArray[np.float32]
    dff: NDArray[np.float32]
    resting: NDArray[np.float32]
    noise: NDArray[np.float32]
    motion: NDArray[np.float32]
    rate_hz: NDArray[np.float32] | None = None
    recent: NDArray[np.float32] | None = None
    latent: Latent | None = None
    timeline: Timeline | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class SimulatedSession:
    """A recording, the mouse it is of, and the truth behind it."""

    recording: Recording
    mouse: Mouse
    truth: Truth


def simulate_session(config: MouseConfig, *, schedule: Schedule, session: str | None = None) -> SimulatedSession:
    """Show a schedule to a mouse. ``session`` names the random streams (default: the schedule's name): another name
    is another day of the same mouse and schedule.
    """
    return _simulate(calibrated_mouse(config), schedule=schedule, session=session or schedule.name)


def simulate_container(config: MouseConfig) -> tuple[SimulatedSession, SimulatedSession, SimulatedSession]:
    """The three Allen sessions A, B and C of one mouse, with the same neurons."""
    first, second, third = (simulate_session(config, schedule=schedule) for schedule in (ALLEN_A, ALLEN_B, ALLEN_C))
    return first, second, third


def short_session(config: MouseConfig, *, presentations: int = 82) -> SimulatedSession:
    """Three sub-sessions of drifting gratings, ``presentations`` in each; 12.7 minutes by default."""
    return simulate_session(config, schedule=short_schedule(presentations=presentations))


def session_from_spikes(
    spikes: NDArray[np.integer],
    *,
    rate_hz: float,
    stimuli: StimulusTable,
    indicator: IndicatorName,
    seed: int,
    source: str,
    neuron_ids: Sequence[str] | None = None,
) -> SimulatedSession:
    """See given spikes ``(frames, neurons)``, counts a frame at ``rate_hz``, through a simulated microscope.

    The result is *semi-synthetic*: the spikes, with whatever they owe to stimulus and state, are measured; the indicator,
    optics and noise are simulated, and so is the neuropil, which follows the mean response of these neurons.

    Raises:
        RecordingError: the spikes are not counts, or not at 30 Hz within 5 %.
    """
    counts = np.asarray(spikes)
    if counts.ndim != 2 or counts.dtype.kind not in "iu" or (counts.size and (counts.min() < 0 or counts.max() > 255)):
        raise RecordingError(
            f"spikes are {counts.dtype} {counts.shape}; expected whole counts 0 to 255, (frames, neurons)"
        )
    if abs(rate_hz / RATE_HZ - 1.0) > 0.05:
        raise RecordingError(f"spikes at {rate_hz} Hz; the simulated microscope runs at {RATE_HZ} Hz within 5 %")
    counts = counts.astype(np.uint8)
    mouse = draw_neurons(MouseConfig(neurons=counts.shape[1], seed=seed, indicator=indicator))
    if neuron_ids is not None:
        mouse = replace(mouse, neuron_ids=tuple(neuron_ids))
    slow, fast = mouse.kinetics.calcium(counts)
    dff = mouse.kinetics.dff(slow, fast).astype(np.float32)
    images = photograph(mouse, dff=dff, arousal=np.zeros(len(counts), np.float32), seed=seed, session="spikes")
    recording = Recording(
        fluorescence=images.fluorescence,
        neuropil=images.neuropil,
        neuropil_factor=mouse.neuropil_factor.astype(np.float32),
        timestamps_s=np.arange(len(counts)) / rate_hz,
        neuron_ids=mouse.neuron_ids,
        stimuli=stimuli,
        provenance=Provenance(
            origin="semi-synthetic",
            source=source,
            facts={"seed": str(seed), "indicator": indicator, "optics": "simulated"},
        ),
    )
    truth = Truth(
        spikes=counts,
        calcium_slow=slow,
        calcium_fast=fast,
        dff=dff,
        resting=images.resting,
        noise=images.noise,
        motion=images.motion,
    )
    return SimulatedSession(recording=recording, mouse=mouse, truth=truth)


_SPIKES_ARRAYS = frozenset({"spikes", "cell_ids", "onset_frame", "length_frames", "rate_hz"})


def is_spikes_file(path: Path) -> bool:
    """Whether an ``.npz`` file holds what `allen_spikes_session` reads, by the names of its arrays."""
    try:
        with ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
    except (OSError, BadZipFile):
        return False
    return names >= _SPIKES_ARRAYS


def allen_spikes_session(path: Path, *, seed: int = 0, indicator: IndicatorName = "GCaMP6f") -> Recording:
    """The semi-synthetic session of `allen_511510667_session_a.npz`: 242 neurons, 628 real onsets in three sub-sessions.

    The file has no stimulus labels: every row is ``drifting_gratings/unlabelled``. Its spikes are *inferred*, at most one
    a frame.

    Raises:
        RecordingError: the file lacks an array, or its arrays contradict each other.
    """
    with np.load(path, allow_pickle=False) as arrays:
        missing = _SPIKES_ARRAYS - set(arrays.files)
        if missing:
            raise RecordingError(
                f"{path.name}: no array {', '.join(sorted(missing))}; is it a spikes file of session A?"
            )
        spikes, ids = arrays["spikes"].T, arrays["cell_ids"]
        onset, length, rate_hz = arrays["onset_frame"], arrays["length_frames"], float(arrays["rate_hz"])
    # A pause of more than 39 frames between two gratings separates the sub-sessions (Allen session A).
    breaks = np.concatenate([[False], onset[1:] - (onset + length)[:-1] > 39])
    stimuli = StimulusTable.build(
        onset_s=onset / rate_hz,
        duration_s=length / rate_hz,
        category=["drifting_gratings"] * len(onset),
        stimulus_id=["drifting_gratings/unlabelled"] * len(onset),
        features={},
        sub_session=np.cumsum(breaks),
    )
    return session_from_spikes(
        spikes,
        rate_hz=rate_hz,
        stimuli=stimuli,
        indicator=indicator,
        seed=seed,
        source=path.name,
        neuron_ids=[str(name) for name in ids],
    ).recording


@lru_cache(maxsize=16)
def calibrated_mouse(config: MouseConfig) -> Mouse:
    """Draw a mouse and find the rate at which ``active_fraction`` of its responses to drifting gratings are active."""
    mouse = draw_neurons(config)
    pilot = short_schedule(presentations=40)
    low, high = np.log(0.005), np.log(20.0)
    for _ in range(9):
        middle = 0.5 * (low + high)
        active = _active_fraction(replace(mouse, rate_scale=float(np.exp(middle))), schedule=pilot)
        low, high = (middle, high) if active < config.active_fraction else (low, middle)
    return replace(mouse, rate_scale=float(np.exp(0.5 * (low + high))))


def _active_fraction(mouse: Mouse, *, schedule: Schedule) -> float:
    """Noise-free active fraction in one pilot session, always with the same random numbers."""
    world = _unfold(mouse, schedule=schedule, session="pilot")
    glow = 1.0 + world.dff.astype(np.float64)
    total = np.concatenate([np.zeros((1, glow.shape[1])), np.cumsum(glow, axis=0)])
    onset = world.timeline.onset_frame
    f0 = (total[onset] - total[onset - _F0]) / _F0
    response = (total[onset + _RESPONSE] - total[onset]) / _RESPONSE
    return float(np.mean(response / f0 - 1.0 >= _THRESHOLD))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Unfolded:
    timestamps_s: NDArray[np.float64]
    table: StimulusTable
    timeline: Timeline
    latent: Latent
    spikes: Spikes
    calcium_slow: NDArray[np.float32]
    calcium_fast: NDArray[np.float32]
    dff: NDArray[np.float32]


def _unfold(mouse: Mouse, *, schedule: Schedule, session: str) -> _Unfolded:
    seed = mouse.config.seed
    frames = round(schedule.duration_s * RATE_HZ)
    # Resonant scanners keep time to a fraction of a millisecond; the drift of the mean rate is what time stamps are for.
    clock = stream(seed, session, "clock")
    rate_hz = RATE_HZ * (1.0 + 0.001 * clock.standard_normal())
    timestamps = (np.arange(frames) + 0.02 * clock.uniform(-1.0, 1.0, frames)) / rate_hz
    table = schedule.table(stream(seed, session, "order"))
    timeline = Timeline.of(table, timestamps_s=timestamps, mouse=mouse)
    latent = Latent.draw(mouse, frames=frames, presentations=len(table), rng=stream(seed, session, "latent"))
    spikes = draw_spikes(mouse, timeline=timeline, latent=latent, rng=stream(seed, session, "spikes"))
    slow, fast = mouse.kinetics.calcium(spikes.counts, kept=timeline.calcium_kept)
    dff = mouse.kinetics.dff(slow, fast).astype(np.float32)
    return _Unfolded(
        timestamps_s=timestamps,
        table=table,
        timeline=timeline,
        latent=latent,
        spikes=spikes,
        calcium_slow=slow,
        calcium_fast=fast,
        dff=dff,
    )


def _simulate(mouse: Mouse, *, schedule: Schedule, session: str) -> SimulatedSession:
    config = mouse.config
    world = _unfold(mouse, schedule=schedule, session=session)
    images = photograph(mouse, dff=world.dff, arousal=world.latent.arousal, seed=config.seed, session=session)
    recording = Recording(
        fluorescence=images.fluorescence,
        neuropil=images.neuropil,
        neuropil_factor=mouse.neuropil_factor.astype(np.float32),
        timestamps_s=world.timestamps_s,
        neuron_ids=mouse.neuron_ids,
        stimuli=world.table,
        provenance=Provenance(
            origin="simulated",
            source=f"quantformer_training.simulated {schedule.name} {session}",
            subject=f"sim{config.seed}",
            facts={
                "seed": str(config.seed),
                "indicator": config.indicator,
                "baseline_information": str(config.baseline_information),
            },
        ),
    )
    truth = Truth(
        spikes=world.spikes.counts,
        calcium_slow=world.calcium_slow,
        calcium_fast=world.calcium_fast,
        dff=world.dff,
        resting=images.resting,
        noise=images.noise,
        motion=images.motion,
        rate_hz=world.spikes.rate_hz,
        recent=world.spikes.recent,
        latent=world.latent,
        timeline=world.timeline,
    )
    return SimulatedSession(recording=recording, mouse=mouse, truth=truth)
