"""One recording two ways: streamed through the running service by the player, and read offline by the trials of training.

Windows are equal bit for bit; PyTorch with the calibration and the service agree within the parity tolerance.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from running_service import PATIENCE_S, RunningService

from quantformer.config import LEVEL_QUANTITIES, ModelConfig
from quantformer.forecaster import CLIP
from quantformer.population_level import joined_level
from quantformer.recording import Recording
from quantformer.signal import SignalRecipe, f0_level, hold_missing, read_baseline
from quantformer_client import Answer, Disturbance, Microscope, Played, Player, Presentation, SignalDeclaration, wire
from quantformer_training.calibrate import probability
from quantformer_training.examples import Examples
from quantformer_training.export import TOLERANCE
from quantformer_training.finetune import FinetuneConfig
from quantformer_training.fit import FitConfig, Fitted, fit
from quantformer_training.loop import LoopConfig
from quantformer_training.packing import write_fitted
from quantformer_training.readers import open_recording
from quantformer_training.simulated import MouseConfig, short_session
from quantformer_training.splits import split_by_time
from quantformer_training.trials import Moments, Trials

pytestmark = pytest.mark.slow

RECIPE = SignalRecipe()
BASELINE = RECIPE.baseline_frames
LEADS = (1, 3, 10)
LOSS = 0.03
#: Moments at which nothing begins, spread over the streamed part.
PSEUDO = 12
#: A question by frame number is asked this many frames before its onset.
AHEAD = 40


class TinyFit(FitConfig):
    """A fit whose network is just large enough to answer differently to every question."""

    @property
    def model(self) -> ModelConfig:
        return ModelConfig(d=16, layers=1, heads=2, codes=8)


@dataclass(frozen=True)
class Asked:
    """A question: how its onset was announced, the index of its moment, and the last frames that were withheld."""

    how: str
    moment: int
    lead: int = 0


@dataclass(frozen=True, kw_only=True, eq=False)
class Streamed:
    """One run: what the player did, the session's counters, the frames that arrived (over the whole recording), answers."""

    played: Played
    counters: Mapping[str, int]
    observed: NDArray[np.bool_]
    answers: Mapping[Asked, Answer]


@dataclass(frozen=True, kw_only=True, eq=False)
class Both:
    """A fitted recording, the moments asked about, and the runs through the service by name."""

    fitted: Fitted
    trials: Trials
    pseudo: Trials
    bundle: str
    runs: Mapping[str, Streamed]

    def trials_of(self, asked: Asked) -> Trials:
        return self.pseudo if asked.how == "nothing" else self.trials

    def offline(self, asked: Asked) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Window and validity as `TrialReader` reads them."""
        moments, reader = self.trials_of(asked).moments, self.fitted.reader
        missing = np.arange(BASELINE) >= BASELINE - asked.lead
        window = np.empty((reader.recording.neurons, BASELINE), np.float32)
        _, valid = reader.write(moments, asked.moment, out=window, missing=missing)
        return window, valid


# --- preparing, and streaming -----------------------------------------------------------------------------------------


def simulated() -> Recording:
    return short_session(MouseConfig(neurons=12, seed=3), presentations=24).recording


def gratings(shared_data: Path) -> Recording:
    return open_recording(shared_data / "v1_gratings_24rois.npz")


def spoilt(recording: Recording, *, after: int) -> Recording:
    """The same with a NaN in one neuron and a stretch of darkness in another, both after that frame."""
    traces = recording.fluorescence.copy()
    traces[after + 400, 1] = np.nan
    traces[after + 900 : after + 1300, 2] *= 1e-3
    neuropil = recording.neuropil
    assert neuropil is not None
    dark = neuropil.copy()
    dark[after + 900 : after + 1300, 2] = 0.0
    return replace(recording, fluorescence=traces, neuropil=dark)


def spread(trials: Trials, count: int) -> Trials:
    """So many of the trials, first to last."""
    return trials.select(np.linspace(0, len(trials.moments) - 1, count).astype(np.intp))


def described(moments: Moments, i: int) -> wire.Stimulus:
    """A moment's stimulus by its features, as one asks about what has no id in the bundle."""
    return wire.Stimulus(category=moments.category[i], features=dict(moments.features[i]))


def stream(
    service: RunningService,
    recording: Recording,
    *,
    start: int,
    trials: Trials,
    pseudo: Trials,
    over: Literal["zmq", "tcp"],
    loss: float,
) -> Streamed:
    """Play the recording from frame ``start`` on, and ask about every moment in every way."""
    table, moments = recording.stimuli, trials.moments
    rows = moments.trial
    player = Player(
        fluorescence=recording.fluorescence[start:],
        neuropil=None if recording.neuropil is None else recording.neuropil[start:],
        timestamps_s=recording.timestamps_s[start:],
        first_frame=start,
        presentations=[
            Presentation(
                onset_s=float(table.onset_s[row]),
                duration_s=float(table.duration_s[row]),
                stimulus=table.stimulus_id[row],
            )
            for row in rows
        ],
        baseline=True,
        disturbance=Disturbance(loss=loss, seed=5),
    )
    observed = np.zeros(recording.frames, bool)
    observed[[start + frame for _, frame in player.schedule()]] = True
    agenda = [(int(f) - AHEAD, Asked("frame", i)) for i, f in enumerate(moments.frame)]
    agenda += [(int(f) - 1 - lead, Asked("frame", i, lead)) for i, f in enumerate(moments.frame) for lead in LEADS]
    agenda += [(int(f) - AHEAD, Asked("nothing", i)) for i, f in enumerate(pseudo.moments.frame)]
    waiting = deque(sorted(agenda, key=lambda one: one[0]))
    questions: dict[int, Asked] = {}
    found: dict[int, Answer] = {}
    factor = recording.neuropil_factor
    assert factor is not None
    scope = Microscope(
        subject="both ways",
        rois=recording.neuron_ids,
        rate_hz=recording.rate_hz,
        signal=SignalDeclaration(corrected=False, neuropil_factor=factor.tolist()),
        port={"zmq": service.zmq, "tcp": service.tcp}[over],
        over=over,
    )

    def hear(question: int | None = None) -> None:
        """Take an answer: that of a question, or the next."""
        while True:
            answer = scope.wait(PATIENCE_S)
            assert answer is not None, f"no answer within {PATIENCE_S} s; refused: {scope.refused}, {list(scope.errors)}"
            found[answer.question] = answer
            if question is None or answer.question == question:
                return

    def after_frame(index: int) -> None:
        while waiting and waiting[0][0] <= start + index:
            asked = waiting.popleft()[1]
            of = pseudo.moments if asked.how == "nothing" else moments
            stimulus = described(of, asked.moment) if asked.how == "nothing" else of.stimulus_id[asked.moment]
            question = scope.onset(
                stimulus,
                onset_frame=int(of.frame[asked.moment]),
                within_s=1e-3 if asked.lead else None,
                baseline=True,
            )
            questions[question] = asked
            if asked.lead:
                # No frame is sent before the answer is there, so that exactly these are withheld.
                hear(question)

    with scope:
        played = player.play(scope, pace="flat", after_frame=after_frame)
        questions |= {question: Asked("time", i) for i, question in played.questions.items()}
        while found.keys() < questions.keys():
            hear()
        assert found.keys() == questions.keys()
        assert not scope.refused
        counters = scope.close()
    return Streamed(
        played=played,
        counters=counters,
        observed=observed,
        answers={questions[number]: answer for number, answer in found.items()},
    )


@pytest.fixture(scope="module", params=["simulated", "v1_gratings_24rois"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    if request.param == "simulated":
        recording, train = simulated(), 52
    else:
        recording, train = gratings(request.getfixturevalue("shared_data")), 53
    split = split_by_time(recording, recipe=RECIPE, train_trials=train, test_trials=12)
    recording = spoilt(recording, after=split.test[0][0])
    loop = LoopConfig(epochs=2, learning_rate=3e-3)
    tasks = FinetuneConfig(activation=loop, forecast=loop, rows_per_epoch=1000)
    config = TinyFit(
        preset="tiny", pretraining=loop, finetuning=tasks, own_windows=400, unlabelled_windows=0, refit=False
    )
    fitted = fit(recording, split=split, config=config, report=lambda _: None)
    folder = tmp_path_factory.mktemp(request.param)
    bundle = write_fitted(fitted, folder / "bundle")
    trials, pseudo = fitted.real["test"], spread(fitted.pseudo["test"], PSEUDO)
    start = split.test[0][0] - 100
    with RunningService(folder / "bundle", folder=folder / "service") as service:

        def run(over: Literal["zmq", "tcp"], loss: float = 0.0) -> Streamed:
            return stream(service, recording, start=start, trials=trials, pseudo=pseudo, over=over, loss=loss)

        runs = {"zmq": run("zmq"), "tcp": run("tcp"), "again": run("zmq"), "lossy": run("tcp", LOSS)}
    return Both(fitted=fitted, trials=trials, pseudo=pseudo, bundle=bundle.hash, runs=runs)


# --- what must hold ---------------------------------------------------------------------------------------------------

EVERYTHING = pytest.mark.parametrize("run", ["zmq", "tcp"])


def invalid_f0(answer: Answer) -> NDArray[np.bool_]:
    return (answer.validity & np.uint8(wire.Validity.INVALID_F0)).astype(np.bool_)


def test_every_frame_arrived_and_every_question_was_answered(both: Both) -> None:
    asked = {Asked("time", i) for i in range(len(both.trials.moments))}
    asked |= {Asked("frame", i, lead) for i in range(len(both.trials.moments)) for lead in (0, *LEADS)}
    asked |= {Asked("nothing", i) for i in range(len(both.pseudo.moments))}
    assert len(asked) > 5 * 10 + PSEUDO / 2
    for name, run in both.runs.items():
        assert run.answers.keys() == asked, name
        assert run.counters["frames"] == run.played.sent == run.observed.sum()
        assert (run.played.lost > 0) == (name == "lossy")
        # Losses in a row are one gap; a loss at either end of the stream is none.
        gaps = run.counters.get("gap_frames", 0)
        assert run.played.lost - 10 < gaps <= run.played.lost
        assert {answer.bundle.hex() for answer in run.answers.values()} == {both.bundle}


@EVERYTHING
def test_windows_and_validity_are_the_trial_readers_bit_for_bit(both: Both, run: str) -> None:
    invalid = 0
    for asked, answer in both.runs[run].answers.items():
        window, valid = both.offline(asked)
        frame = int(both.trials_of(asked).moments.frame[asked.moment])
        assert (answer.onset_frame, answer.lead, answer.held) == (frame, asked.lead, asked.lead), asked
        assert (answer.first_frame, answer.last_frame) == (frame - BASELINE, frame - 1 - asked.lead)
        assert answer.baseline is not None
        assert answer.baseline.tobytes() == window.tobytes(), asked
        np.testing.assert_array_equal(answer.valid, valid)
        np.testing.assert_array_equal(invalid_f0(answer), ~valid)
        assert not answer.flags & wire.Flags.DEGRADED
        invalid += int((~valid).sum())
        if asked.how != "nothing" and not asked.lead:
            whole = both.trials.valid[asked.moment]
            assert answer.baseline[whole].tobytes() == both.trials.baseline[asked.moment][whole].tobytes()
    # The spoilt neurons were seen, each at some moments and not at others.
    assert invalid > 0
    assert invalid < 0.5 * sum(len(answer.rois) for answer in both.runs[run].answers.values())


def compare(both: Both, answers: Mapping[int, Answer], rows: Examples) -> int:
    """Hold answers by moment against PyTorch and the calibration on these rows; how many rows were compared."""
    made, calibrated = both.fitted.model.predict(rows), both.fitted.calibrated
    # Answers must differ by far more than the tolerance, or nothing is compared.
    assert float(np.ptp(made.logit)) > 100 * TOLERANCE
    assert float(np.ptp(made.response)) > 100 * TOLERANCE
    interval = calibrated.interval
    expected = {
        "probability": probability(made.logit, calibrated.calibration),
        "response": made.response,
        "low": made.response + (made.spread + interval.floor)[:, None] * np.array(interval.low),
        "high": made.response + (made.spread + interval.floor)[:, None] * np.array(interval.high),
    }
    moment, neuron = rows.moment.numpy(), rows.neuron.numpy()
    compared = 0
    for i, answer in answers.items():
        here = moment == i
        compared += int(here.sum())
        assert answer.valid[neuron[here]].all()
        for name, values in expected.items():
            found = getattr(answer, name)[0][neuron[here]]
            np.testing.assert_allclose(found, values[here], rtol=0, atol=TOLERANCE, err_msg=f"{name} of moment {i}")
    return compared


@EVERYTHING
@pytest.mark.parametrize("how", ["time", "frame", "nothing"])
def test_answers_are_those_of_pytorch_with_the_calibration(both: Both, run: str, how: str) -> None:
    trials = both.pseudo if how == "nothing" else both.trials
    source = both.fitted.source(trials)
    for lead in (0, *LEADS) if how == "frame" else (0,):
        answers = {
            asked.moment: answer
            for asked, answer in both.runs[run].answers.items()
            if (asked.how, asked.lead) == (how, lead)
        }
        compared = compare(both, answers, source.at_lead(lead))
        # At a lead a neuron can be invalid whose whole window is valid, not the other way round.
        assert 0.9 * trials.valid.sum() <= compared <= trials.valid.sum()


def test_another_window_gives_another_answer(both: Both) -> None:
    """The tolerance tells neighbouring windows apart: those of one frame more or less."""
    answers = both.runs["zmq"].answers
    for i in range(len(both.trials.moments)):
        whole, withheld = answers[Asked("frame", i)].response, answers[Asked("frame", i, 1)].response
        assert whole is not None
        assert withheld is not None
        assert np.abs(whole - withheld).max() > 10 * TOLERANCE


def test_with_frames_lost_the_windows_hold_what_they_hold_offline(both: Both) -> None:
    run, reader = both.runs["lossy"], both.fitted.reader
    number = np.arange(len(run.observed))
    scale = np.float32(both.fitted.pretrained.signal_scale)
    windows = np.zeros((len(both.trials.moments), reader.recording.neurons, BASELINE), np.float32)
    valid, level = np.zeros(windows.shape[:2], bool), np.zeros((*windows.shape[:2], LEVEL_QUANTITIES), np.float32)
    at_onset: dict[int, Answer] = {}
    holes = 0
    for asked, answer in run.answers.items():
        frame = int(both.trials_of(asked).moments.frame[asked.moment])
        assert answer.onset_frame == frame, asked
        # Where the frame before was lost, a question with a deadline is asked one frame later.
        there = run.observed & (number <= answer.last_frame)
        assert answer.lead == max(0, frame - 1 - answer.last_frame)
        assert answer.lead <= asked.lead
        before = slice(frame - BASELINE, frame)
        offline = read_baseline(
            hold_missing(reader.trace, there)[before],
            recipe=RECIPE,
            f0_minimum=reader.f0_minimum,
            observed=there[before],
        )
        assert answer.baseline is not None
        assert answer.baseline.tobytes() == offline.dff.tobytes(), asked
        np.testing.assert_array_equal(answer.valid, offline.valid)
        assert answer.held == int((~there[before]).sum())
        holes += answer.held
        if asked.how == "time":
            at_onset[asked.moment] = answer
            windows[asked.moment], valid[asked.moment] = offline.dff, offline.valid
            told = reader.population.of(reader.trace[before], observed=there[before])
            level[asked.moment] = joined_level(f0_level(offline.f0, reader.usual_f0), told)
    assert holes > 0
    # The same rows as without losses, each with its own held window.
    rows = both.fitted.source(both.trials).at_lead(0)
    kept = rows.select(torch.from_numpy(valid[rows.moment.numpy(), rows.neuron.numpy()]))
    at = kept.moment.numpy(), kept.neuron.numpy()
    held = replace(
        kept, baseline=torch.from_numpy(windows[at] / scale).clamp(-CLIP, CLIP), level=torch.from_numpy(level[at])
    )
    assert compare(both, at_onset, held) > 0.9 * both.trials.valid.sum()


@pytest.mark.parametrize("other", ["again", "tcp"])
def test_a_second_run_gives_identical_answers(both: Both, other: str) -> None:
    first, second = both.runs["zmq"].answers, both.runs[other].answers
    for asked, answer in first.items():
        twin = second[asked]
        for name in ("rois", "validity", "probability", "response", "low", "high", "baseline"):
            assert getattr(answer, name).tobytes() == getattr(twin, name).tobytes(), (asked, name)
        for name in ("stimuli", "asked", "phase", "onset_frame", "first_frame", "last_frame", "lead", "held"):
            assert getattr(answer, name) == getattr(twin, name), (asked, name)
        # An onset announced by frame has that frame's stamp, or the predicted one if the frame was still to come.
        assert answer.onset_s == pytest.approx(twin.onset_s, abs=0.0 if asked.how == "time" else 2e-3)
