"""Hold the simulator against real recordings: ``python -m quantformer_training.realism --data DIR``.

For each real recording a session is simulated under matched conditions: schedule, length, number of neurons, indicator,
and, where the table says *set*, noise and active fraction. Every other parameter is the simulator's default. A property
is *inside* where the simulated value, averaged over mice of different seeds, lies in the real value's 95 % interval.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import DataError
from quantformer.recording import Recording, StimulusTable
from quantformer.signal import onset_frames
from quantformer_training.numpy_files import read_npz
from quantformer_training.properties import Sample, cut, properties, sample
from quantformer_training.published import recording_from_published
from quantformer_training.simulated import ALLEN_A, Block, MouseConfig, Schedule, short_schedule, simulate_session
from quantformer_training.spike_properties import SpikeSample, spike_properties

RESAMPLES = 300
#: The schedule of `v1_gratings_24rois`: 8 directions x 10, one every ten seconds.
LONG_GRATINGS = Schedule(
    name="long_gratings",
    duration_s=820.0,
    blocks=(
        Block(category="drifting_gratings", start_s=11.54, presentations=80, on_s=8.5, period_s=10.0, sub_session=0),
    ),
    temporal_hz=(2.0,),
)
#: Frames of the centred running median that stored dF/F is taken over, and every how many frames it is computed.
DETREND, DETREND_STEP = 401, 10
#: A simulated neuron is compared with the one real cell where its active fraction and the standard deviation of its
#: dF/F lie about in the cell's own intervals: a neuron whose transients drown in noise has another autocorrelation.
ACTIVE_CELL, BRIGHT_CELL = (0.027, 0.055), (0.17, 0.36)
_SET = frozenset({"active fraction, real onsets", "noise of one frame, dF/F"})
#: What the two recordings without stimulus labels, or with one neuron, allow.
_TRACE_ONLY = (
    "active fraction, pseudo-onsets",
    "noise of one frame, dF/F",
    *(f"autocorrelation of dF/F, lag {lag}" for lag in (1, 5, 15, 30)),
    "standard deviation of dF/F",
    "pairwise noise correlation",
)
_ONE_CELL = (
    "active fraction, real onsets",
    "active fraction, pseudo-onsets",
    "within-neuron AUROC, logistic regression",
    *(f"within-neuron AUROC, last 5 frames / F0, lead {lead}" for lead in (0, 3, 5, 10)),
    "its fall from lead 0 to lead 10",
    "noise of one frame, dF/F",
    *(f"autocorrelation of dF/F, lag {lag}" for lag in (1, 5, 15, 30)),
    "standard deviation of dF/F",
    "F0 over trials, coefficient of variation",
)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One property of one recording: the real value with its 95 % bootstrap interval, and the simulated value, mean and
    95 % range over mice (over single neurons where the real recording is of one).

    ``given`` marks what the matched conditions set; NaN bounds mean that the real file is too small for an interval.
    """

    recording: str
    name: str
    real: float
    low: float
    high: float
    simulated: float
    lowest: float
    highest: float
    given: bool

    @property
    def verdict(self) -> str:
        """``inside`` or ``OUTSIDE`` the real interval, or that there is none."""
        if not np.isfinite([self.low, self.high, self.simulated]).all():
            return "no interval"
        return "inside" if self.low <= self.simulated <= self.high else "OUTSIDE"


Resampled = TypeVar("Resampled", Sample, SpikeSample)
_Measure = Callable[[Resampled], Mapping[str, float]]


def bootstrap(of: Resampled, *, measure: _Measure[Resampled], seed: int) -> dict[str, tuple[float, float]]:
    """95 % percentile interval of each property; NaN bounds where a tenth of the resamples have none."""
    rng = np.random.default_rng(seed)
    drawn = [measure(of.resampled(rng)) for _ in range(RESAMPLES)]
    found = {}
    for name in drawn[0]:
        values = np.array([one[name] for one in drawn])
        values = values[np.isfinite(values)]
        low, high = np.percentile(values, [2.5, 97.5]) if len(values) > 0.9 * RESAMPLES else (np.nan, np.nan)
        found[name] = (float(low), float(high))
    return found


def _compared(
    recording: str,
    *,
    real: Resampled,
    simulated: Sequence[Resampled],
    measure: _Measure[Resampled],
    chosen: Sequence[str] | None,
    given: frozenset[str],
    seed: int,
) -> list[Compared]:
    value, interval = measure(real), bootstrap(real, measure=measure, seed=seed)
    mice = [measure(one) for one in simulated]
    drawn = {name: np.array([one[name] for one in mice if np.isfinite(one[name])] or [np.nan]) for name in mice[0]}
    return [
        Compared(
            recording=recording,
            name=name,
            real=value[name],
            low=interval[name][0],
            high=interval[name][1],
            simulated=float(drawn[name].mean()),
            lowest=float(np.percentile(drawn[name], 2.5)),
            highest=float(np.percentile(drawn[name], 97.5)),
            given=name in given,
        )
        for name in (chosen or list(value))
    ]


def compare_gratings(path: Path, *, seeds: Sequence[int]) -> list[Compared]:
    """`v1_gratings_24rois`; pseudo-onsets five seconds into the same grating, baselines as in the data's own notes."""

    def sampled(recording: Recording) -> Sample:
        onset = _gratings(recording)
        condition = np.unique(recording.stimuli.stimulus_id, return_inverse=True)[1].reshape(-1)
        return sample(recording, real=onset, pseudo=onset + 150, condition=condition, train_trials=53)

    real = recording_from_published(read_npz(path), source=path)
    configs = [
        MouseConfig(neurons=real.neurons, seed=seed, indicator="GCaMP6s", active_fraction=0.13, shot_noise=0.09)
        for seed in seeds
    ]
    return _compared(
        path.stem,
        real=sampled(real),
        simulated=[
            sampled(_corrected(simulate_session(config, schedule=LONG_GRATINGS).recording)) for config in configs
        ],
        measure=properties,
        chosen=None,
        given=_SET,
        seed=seeds[0],
    )


def _gratings(recording: Recording) -> NDArray[np.int64]:
    shown = np.array(recording.stimuli.category) == "drifting_gratings"
    return onset_frames(recording.timestamps_s, recording.stimuli.onset_s[shown])


def compare_population(path: Path, *, seeds: Sequence[int]) -> list[Compared]:
    """`allen_552195520_excerpt`: 200 s of stored dF/F, onsets unknown; windows are cut every 97 frames."""

    def sampled(recording: Recording) -> Sample:
        moments = np.arange(100, recording.frames - 100, 97)
        nothing = np.zeros(len(moments), np.int64)
        return sample(recording, real=moments, pseudo=moments, condition=nothing, train_trials=len(moments) // 2)

    real = recording_from_published(read_npz(path), source=path)
    simulated = []
    for seed in seeds:
        config = MouseConfig(neurons=real.neurons, seed=seed, active_fraction=0.013, shot_noise=0.05)
        session = simulate_session(config, schedule=short_schedule()).recording
        simulated.append(sampled(_stored_dff(_corrected(session.between(0, real.frames)))))
    return _compared(
        path.stem,
        real=sampled(real),
        simulated=simulated,
        measure=properties,
        chosen=_TRACE_ONLY,
        given=_SET | {"active fraction, pseudo-onsets"},
        seed=seeds[0],
    )


def _corrected(recording: Recording) -> Recording:
    """With the usual neuropil factor for every neuron: nobody knows the true ones, so some neuropil stays."""
    return replace(recording, neuropil_factor=np.full(recording.neurons, 0.7, np.float32))


def _stored_dff(recording: Recording) -> Recording:
    """As the stored dF/F is made: over a centred running median, which no causal method has."""
    trace = recording.corrected().astype(np.float64)
    reach = DETREND // 2
    at = np.arange(0, len(trace), DETREND_STEP)
    level = np.stack([np.median(trace[max(t - reach, 0) : t + reach + 1], axis=0) for t in at])
    smooth = np.stack([np.interp(np.arange(len(trace)), at, level[:, n]) for n in range(trace.shape[1])], axis=1)
    return Recording(
        fluorescence=(trace / smooth).astype(np.float32),
        timestamps_s=recording.timestamps_s,
        neuron_ids=recording.neuron_ids,
        stimuli=StimulusTable.empty(),
        provenance=recording.provenance,
        signal="dff_plus_one",
    )


def compare_cell(path: Path, *, seeds: Sequence[int]) -> list[Compared]:
    """`corrected_fluorescence_cell0`: one neuron; pseudo-onsets halfway between two gratings. It is held against every
    simulated neuron that is about as active and as bright.
    """

    def sampled(recording: Recording) -> Sample:
        onset = _gratings(recording)
        nothing = np.zeros(len(onset), np.int64)
        return sample(recording, real=onset, pseudo=onset + 45, condition=nothing, train_trials=400)

    simulated = []
    for seed in seeds:
        config = MouseConfig(neurons=60, seed=seed, shot_noise=0.035)
        recording = _corrected(simulate_session(config, schedule=ALLEN_A).recording)
        simulated += [sampled(recording.select_neurons([n])) for n in _like_the_cell(recording)]
    if not simulated:
        raise DataError("no simulated neuron is as active and as bright as the real cell; simulate more mice (--mice)")
    return _compared(
        f"{path.stem}, cell 0",
        real=sampled(recording_from_published(read_npz(path), source=path)),
        simulated=simulated,
        measure=properties,
        chosen=_ONE_CELL,
        given=_SET | {"standard deviation of dF/F"},
        seed=seeds[0],
    )


def _like_the_cell(recording: Recording) -> list[int]:
    onset = _gratings(recording)
    active = cut(recording, onset, condition=np.zeros(len(onset), np.int64)).active.mean(axis=0)
    trace = recording.corrected()
    spread = (trace / np.median(trace, axis=0)).std(axis=0)
    fits = (active >= ACTIVE_CELL[0]) & (active <= ACTIVE_CELL[1])
    fits &= (spread >= BRIGHT_CELL[0]) & (spread <= BRIGHT_CELL[1])
    return [int(n) for n in np.flatnonzero(fits)]


def compare_spikes(path: Path, *, seeds: Sequence[int]) -> list[Compared]:
    """The inferred spikes of `allen_511510667_session_a` against true simulated ones."""
    arrays = read_npz(path)
    simulated = []
    for seed in seeds:
        session = simulate_session(MouseConfig(neurons=60, seed=seed), schedule=ALLEN_A)
        simulated.append(SpikeSample.of(session.truth.spikes, onset=_gratings(session.recording)))
    onset: NDArray[np.int64] = arrays["onset_frame"].astype(np.int64)
    return _compared(
        f"{path.stem}, spikes",
        real=SpikeSample.of(arrays["spikes"].T, onset=onset),
        simulated=simulated,
        measure=spike_properties,
        chosen=None,
        given=frozenset(),
        seed=seeds[0],
    )


COMPARISONS: Mapping[str, tuple[str, Callable[..., list[Compared]]]] = {
    "gratings": ("v1_gratings_24rois.npz", compare_gratings),
    "population": ("allen_552195520_excerpt.npz", compare_population),
    "cell": ("allen_511510667_session_a.npz", compare_cell),
    "spikes": ("allen_511510667_session_a.npz", compare_spikes),
}


def table(rows: Sequence[Compared]) -> str:
    """A markdown table, with what is outside named below it."""
    lines = [
        "| recording | property | real | 95 % interval | simulated | 95 % of mice | |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mark = f"{row.verdict}, set" if row.given else row.verdict
        bounds = f"{row.low:.3f} to {row.high:.3f}" if np.isfinite(row.low) else "-"
        mice = f"{row.lowest:.3f} to {row.highest:.3f}"
        lines.append(
            f"| {row.recording} | {row.name} | {row.real:.3f} | {bounds} | {row.simulated:.3f} | {mice} | {mark} |"
        )
    free = [row for row in rows if not row.given and row.verdict != "no interval"]
    outside = [f"{row.name} ({row.recording})" for row in free if row.verdict == "OUTSIDE"]
    lines += ["", f"Inside: {len(free) - len(outside)} of {len(free)} properties that were not set."]
    lines += ["Outside: " + ("; ".join(outside) if outside else "none") + "."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; with ``--json`` write every number too."""
    parser = argparse.ArgumentParser(prog="python -m quantformer_training.realism", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the real recordings")
    parser.add_argument("--json", type=Path, help="write the comparison as JSON to this file")
    parser.add_argument("--mice", type=int, default=6, help="simulated mice a recording, seeds 0, 1, ... (default 6)")
    parser.add_argument("--only", choices=sorted(COMPARISONS), help="one comparison instead of all")
    chosen = parser.parse_args(arguments)
    rows = []
    for name, (file, compare) in COMPARISONS.items():
        if chosen.only in (None, name):
            rows += compare(chosen.data / file, seeds=range(chosen.mice))
    sys.stdout.write(table(rows))
    if chosen.json is not None:
        found = [asdict(row) | {"verdict": row.verdict} for row in rows]
        chosen.json.write_text(json.dumps(found, indent=1).replace("NaN", "null") + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
