"""Runs of an invented study, for the tests of tables and reports."""

from __future__ import annotations

import math

import numpy as np

from quantformer_training.paper_figures import PAPER_TABLES
from quantformer_training.result_columns import columns
from quantformer_training.result_tables import ResultTable, result_table
from quantformer_training.run_store import Run, RunKey

CATEGORIES = ("drifting_gratings", "natural_scenes")
TITLES = {"quantformer": "QuantFormer", "ridge": "ridge <own>", "lstm": "LSTM | mean", "informer": "Informer"}
#: What each model adds to the balanced accuracy of a mouse and category.
ADDED = {"quantformer": 0.10, "ridge": 0.10, "lstm": 0.0}


def run(
    *,
    mouse: str = "mouse-1",
    category: str = "drifting_gratings",
    model: str = "quantformer",
    seed: int = 0,
    variant: str = "",
    failure: str = "",
    **metrics: float,
) -> Run:
    return Run(
        key=RunKey(table="table1", mouse=mouse, category=category, model=model, task="both", variant=variant, seed=seed),
        fingerprint="f",
        origin="simulated",
        metrics=metrics,
        seconds=2.0,
        machine="two cores",
        versions={"torch": "2.13"},
        date="2026-01-01T00:00:00+00:00",
        failure=failure,
    )


def study_runs(*, mice: int = 6) -> list[Run]:
    """Three models on every mouse and category with two seeds; one failed run, one without a score."""
    random = np.random.default_rng(0)
    found = []
    for mouse in range(mice):
        for category in CATEGORIES:
            base = 0.6 + random.normal(0, 0.03)
            for model, added in ADDED.items():
                for seed in (0, 1):
                    score = base + added + random.normal(0, 0.01)
                    found.append(
                        run(
                            mouse=f"mouse-{mouse}",
                            category=category,
                            model=model,
                            seed=seed,
                            balanced_accuracy=score,
                            normalised_mse=1.0 - score,
                            absolute_r=0.3 + 0.1 * score,
                            absolute_r_chance=0.25,
                            active_fraction=0.2,
                        )
                    )
    found.append(run(model="lstm", mouse="mouse-9", failure="no presentations of natural_scenes"))
    found.append(run(model="lstm", mouse="mouse-8", balanced_accuracy=math.nan))
    found.append(run(model="quantformer", mouse="mouse-8", balanced_accuracy=0.7))
    return found


def study_table(*, mice: int = 6) -> ResultTable:
    return result_table(
        study_runs(mice=mice),
        name="table1",
        title="Classification, all <stimuli>",
        columns=columns(["balanced_accuracy", "absolute_r", "normalised_mse", "recall"]),
        reference="quantformer",
        titles=TITLES,
        paper=PAPER_TABLES["table1"],
        resamples=2000,
    )
