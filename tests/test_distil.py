"""Distillation: what teachers say, in whose units, what a student learns of it, and whom it may not learn from."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_fit import fitted
from small_model import CONFIG, SCALE, Sources, sources_of, tiny_model, tiny_pretrained, tiny_training
from small_recording import small_recording

from quantformer.config import ModelConfig
from quantformer.errors import DataError, UsageError
from quantformer.forecaster import ACTIVATION, FORECAST
from quantformer_training.arrays import save_recording
from quantformer_training.distil import Teachers, in_units_of
from quantformer_training.examples import Examples, Vocabulary
from quantformer_training.finetune import FinetuneConfig, TrainedModel, finetune
from quantformer_training.fitted_files import RecordingFile, load_teachers, save_fitted
from quantformer_training.loop import Progress
from quantformer_training.packing import write_fitted
from quantformer_training.splits import Split


class Stopped(Exception):
    """An interruption."""


@pytest.fixture(scope="module")
def sources() -> Sources:
    return sources_of()


@pytest.fixture(scope="module")
def pair(sources: Sources) -> tuple[TrainedModel, TrainedModel]:
    return tiny_model(sources.vocabulary, seed=0), tiny_model(sources.vocabulary, seed=1)


def trained(
    sources: Sources,
    *,
    teachers: Teachers | None,
    config: FinetuneConfig | None = None,
    sizes: ModelConfig = CONFIG,
    checkpoints: Path | None = None,
    stop: tuple[str, int] | None = None,
) -> TrainedModel:
    def report(progress: Progress) -> None:
        if stop == (progress.stage, progress.epoch):
            raise Stopped

    return finetune(
        tiny_pretrained(sizes),
        vocabulary=sources.vocabulary,
        real=sources.real,
        pseudo=sources.pseudo,
        moments=sources.moments,
        validation=sources.validation,
        config=config or tiny_training(),
        report=report,
        checkpoints=checkpoints,
        teachers=teachers,
    )


def weights(*models: TrainedModel) -> bytes:
    modules = [part for model in models for part in (model.forecaster, *model.tokens)]
    return b"".join(value.numpy().tobytes() for part in modules for value in part.state_dict().values())


def chance(model: TrainedModel, rows: Examples) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-model.predict(rows).logit.astype(np.float64)))


def test_teachers_say_the_mean_of_their_chances_and_traces(
    sources: Sources, pair: tuple[TrainedModel, TrainedModel]
) -> None:
    rows, both = sources.test.at_lead(3), Teachers(models=pair)
    told = [chance(model, rows) for model in pair]
    assert not np.allclose(told[0], told[1], atol=1e-3)
    found = both.probability(rows, signal_scale=SCALE)
    np.testing.assert_allclose(found.numpy(), np.mean(told, axis=0), atol=1e-6)
    response = both.response(rows, signal_scale=SCALE)
    np.testing.assert_allclose(response.numpy(), np.mean([m.predict(rows).response for m in pair], axis=0), atol=1e-6)
    assert not found.requires_grad
    assert not response.requires_grad


def test_a_teacher_answers_alike_whatever_the_scale_of_its_student(
    sources: Sources, pair: tuple[TrainedModel, TrainedModel]
) -> None:
    # The same dF/F, told over half the scale: every number is twice as large, but rates are rates and responses dF/F.
    rows, teachers = sources.test.at_lead(0), Teachers(models=pair[:1])
    double = torch.ones(rows.tuning.shape[1])
    double[2:] = 2.0  # after any stimulus, and after this one
    other = dataclasses.replace(
        rows,
        baseline=2.0 * rows.baseline,
        trace=2.0 * rows.trace,
        tuning=double * rows.tuning,
        population_tuning=double * rows.population_tuning,
    )
    for ask in (teachers.probability, teachers.response):
        expected = ask(rows, signal_scale=SCALE)
        torch.testing.assert_close(ask(other, signal_scale=SCALE / 2), expected, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(ask(other, signal_scale=SCALE), expected, atol=1e-3)
    back = in_units_of(pair[0], other, SCALE / 2)
    for name, value in vars(rows).items():
        torch.testing.assert_close(getattr(back, name), value, msg=name)


@pytest.mark.parametrize("weight", [0.25, 1.0])
def test_what_is_taught_lies_between_what_happened_and_what_is_said(
    sources: Sources, pair: tuple[TrainedModel, TrainedModel], weight: float
) -> None:
    rows, teachers = sources.test.at_lead(0), Teachers(models=pair, weight=weight)
    for task, name, said in (
        (ACTIVATION, "active", teachers.probability(rows, signal_scale=SCALE)),
        (FORECAST, "response", teachers.response(rows, signal_scale=SCALE)),
    ):
        taught = teachers.taught(rows, task=task, signal_scale=SCALE)
        happened = getattr(rows, name).float()
        torch.testing.assert_close(getattr(taught, name), (1 - weight) * happened + weight * said)
        for other, value in vars(rows).items():
            if other != name:
                assert getattr(taught, other) is value, f"{other} of task {task}"


def test_a_student_comes_closer_to_its_teacher_than_one_that_had_none(sources: Sources) -> None:
    # The teacher knows nothing of the recording, so what happened does not lead there.
    teacher = tiny_model(sources.vocabulary, seed=3)
    before, rows = weights(teacher), sources.real.at_lead(0)
    config = tiny_training(epochs=10, rows=600)
    # Of the last epoch: what validation would choose knows nothing of the teacher.
    last = {task: dataclasses.replace(getattr(config, task), stop_after=10) for task in ("activation", "forecast")}
    config = dataclasses.replace(config, **last)
    alone = trained(sources, teachers=None, config=config)
    student = trained(sources, teachers=Teachers(models=(teacher,), weight=1.0), config=config)
    far, near = (np.abs(chance(model, rows) - chance(teacher, rows)).mean() for model in (alone, student))
    assert near < 0.5 * far
    wanted = teacher.predict(rows).response
    far, near = (np.square(model.predict(rows).response - wanted).mean() for model in (alone, student))
    assert near < 0.5 * far
    assert weights(teacher) == before


def test_a_student_has_a_size_of_its_own(sources: Sources, pair: tuple[TrainedModel, TrainedModel]) -> None:
    sizes = dataclasses.replace(CONFIG, d=32, layers=2, codes=4)
    student = trained(sources, teachers=Teachers(models=pair), sizes=sizes)
    assert student.forecaster.config == sizes
    assert np.isfinite(student.predict(sources.test.at_lead(0)).logit).all()


@pytest.mark.parametrize("stop", [("activation", 0), ("forecast", 1)])
def test_a_taught_run_resumes_to_the_same_bits_and_under_no_other_teachers(
    sources: Sources, pair: tuple[TrainedModel, TrainedModel], tmp_path: Path, stop: tuple[str, int]
) -> None:
    teachers, config = Teachers(models=pair), tiny_training(epochs=3)
    with pytest.raises(Stopped):
        trained(sources, teachers=teachers, config=config, checkpoints=tmp_path, stop=stop)
    others = (None, Teachers(models=pair[:1]), Teachers(models=pair, weight=0.75))
    for other in others:
        with pytest.raises(DataError, match="another configuration or data"):
            trained(sources, teachers=other, config=config, checkpoints=tmp_path)
    resumed = trained(sources, teachers=teachers, config=config, checkpoints=tmp_path)
    whole = trained(sources, teachers=teachers, config=config)
    assert weights(resumed) == weights(whole)
    assert weights(whole) != weights(trained(sources, teachers=None, config=config))


def test_the_digest_is_of_every_weight(sources: Sources, pair: tuple[TrainedModel, TrainedModel]) -> None:
    made = tiny_model(sources.vocabulary, seed=0)
    assert Teachers(models=(made,)).digest() == Teachers(models=pair[:1]).digest() != Teachers(models=pair).digest()
    digests = {Teachers(models=(made,)).digest()}
    for part in (made.forecaster, *made.tokens):
        next(iter(part.parameters())).data.flatten()[0] += 1.0
        digests.add(Teachers(models=(made,)).digest())
    assert len(digests) == 4


CHANGES: dict[str, Callable[[Vocabulary], Vocabulary]] = {
    "neuron_ids": lambda v: dataclasses.replace(v, neuron_ids=v.neuron_ids[::-1]),
    "stimulus_ids": lambda v: dataclasses.replace(v, stimulus_ids=v.stimulus_ids[1:]),
    "recipe": lambda v: dataclasses.replace(v, recipe=dataclasses.replace(v.recipe, image_features=("mean",))),
}


@pytest.mark.parametrize("differing", CHANGES)
def test_teachers_of_another_vocabulary_are_refused(
    sources: Sources, pair: tuple[TrainedModel, TrainedModel], differing: str
) -> None:
    stranger = dataclasses.replace(pair[1], vocabulary=CHANGES[differing](sources.vocabulary))
    with pytest.raises(UsageError, match=f"teacher 1 differs from .* in {differing}; teachers are trained on"):
        Teachers(models=(pair[0], stranger))
    with pytest.raises(UsageError, match="teacher 0 differs"):
        trained(sources, teachers=Teachers(models=(stranger,)))


def test_no_teachers_and_no_weight_are_refused(pair: tuple[TrainedModel, TrainedModel]) -> None:
    with pytest.raises(UsageError, match="0 teachers of weight"):
        Teachers(models=())
    for weight in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match=r"expected one or more, and \(0, 1\]"):
            Teachers(models=pair, weight=weight)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RecordingFile]:
    folder = tmp_path_factory.mktemp("teacher")
    save_recording(small_recording(neurons=4, period_s=5.0), folder / "small.npz")
    file = RecordingFile(path=str(folder / "small.npz"))
    save_fitted(fitted(), folder / "run", recording=file)
    return folder / "run", file


def test_a_fitted_model_teaches_as_it_answered(saved: tuple[Path, RecordingFile]) -> None:
    directory, file = saved
    made = fitted()
    teachers = load_teachers([directory, directory], recording=file, split=made.split)
    assert teachers is not None
    rows = made.source(made.real["test"]).at_lead(0)
    said = teachers.probability(rows, signal_scale=made.pretrained.signal_scale)
    np.testing.assert_allclose(said.numpy(), chance(made.model, rows), atol=1e-6)
    assert load_teachers([], recording=file, split=made.split) is None


def test_a_teacher_that_saw_what_its_student_is_judged_on_is_refused(saved: tuple[Path, RecordingFile]) -> None:
    directory, file = saved
    split = fitted().split
    (low, high), (start, stop) = split.train[-1], split.validation[0]
    for held in (
        Split(train=((low, high - 10),), validation=((high - 10, stop),), test=split.test),
        Split(train=((start, stop),), validation=(), test=((low, low + 5),)),
    ):
        with pytest.raises(UsageError, match=r"learned from frames \[\(.*fit\.refit = false"):
            load_teachers([directory], recording=file, split=held)
    # One that was refitted learned from its validation part.
    refitted = dataclasses.replace(fitted(), split=split.merged())
    save_fitted(refitted, directory.with_name("refitted"), recording=file)
    with pytest.raises(UsageError, match="refitted learned from frames"):
        load_teachers([directory.with_name("refitted")], recording=file, split=split)


@pytest.mark.slow
def test_a_bundle_says_that_it_was_taught(tmp_path: Path) -> None:
    taught = dataclasses.replace(fitted(), taught_by="0123abcd")
    assert write_fitted(taught, tmp_path / "taught").manifest.provenance["taught_by_sha256"] == "0123abcd"
