"""How much a study spends: sizes, epochs and trials, the same for every model. Three presets are in use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from quantformer.config import PRESETS, ModelConfig
from quantformer_training.competitors import Budget
from quantformer_training.finetune import FinetuneConfig
from quantformer_training.loop import LoopConfig
from quantformer_training.run_data import MostTrials


@dataclass(frozen=True, kw_only=True)
class Effort:
    """``neurons`` a simulated mouse; ``pretraining_windows`` a session; ``classical_rows`` what a classical model reads, at
    most; the rest as named. With ``refit`` every model, once validation has chosen, is fitted anew on training and validation
    together, as `quantformer evaluate` does. ``gpu_precision`` is what QuantFormer's own networks train in on a GPU:
    competitors' train in float32 everywhere, for not all of their libraries' operations know another.
    """

    preset: str
    neurons: int
    model: ModelConfig
    pretraining: LoopConfig
    pretraining_windows: int
    pretraining_batch: int
    finetuning: FinetuneConfig
    budget: Budget
    most: MostTrials
    classical_rows: int
    refit: bool = False
    gpu_precision: str = "float32"

    def seeded(self, seed: int) -> Effort:
        """The same with every stage on this seed."""
        fine = self.finetuning
        return replace(
            self,
            pretraining=replace(self.pretraining, seed=seed),
            finetuning=replace(
                fine, activation=replace(fine.activation, seed=seed), forecast=replace(fine.forecast, seed=seed)
            ),
        )


def _finetuning(budget: Budget) -> FinetuneConfig:
    """QuantFormer's fine-tuning within the competitors' budget; it begins at a regression, so its first rate is lower."""
    task = LoopConfig(
        epochs=budget.epochs, learning_rate=1e-3, weight_decay=budget.weight_decay, patience=budget.patience
    )
    return FinetuneConfig(
        activation=replace(task, learning_rate=3e-4),
        forecast=task,
        batch=budget.batch,
        rows_per_epoch=budget.rows_per_epoch,
        validation_rows=budget.validation_rows,
        pseudo_per_real=budget.pseudo_per_real,
        moment_epochs=budget.moment_epochs,
        moment_rows=budget.moment_rows,
    )


_SMALL = Budget(epochs=5, rows_per_epoch=2_400, patience=5, pseudo_per_real=1.0, validation_rows=1_000)
_RECORDING = Budget(epochs=12, rows_per_epoch=4_000, patience=6, moment_epochs=6, validation_rows=4_000)
_PAPER = replace(Budget.paper(), validation_rows=100_000)

EFFORTS: Mapping[str, Effort] = MappingProxyType(
    {
        # Three mice on two cores, every table, within the hour.
        "small": Effort(
            preset="small",
            neurons=30,
            model=PRESETS["small"],
            pretraining=LoopConfig(epochs=5, learning_rate=1e-3),
            pretraining_windows=1_500,
            pretraining_batch=128,
            finetuning=_finetuning(_SMALL),
            budget=_SMALL,
            most=MostTrials(train=800, moments=0, validation=80, test=120),
            classical_rows=12_000,
        ),
        # The small network on all trials of a recording, trained until validation says enough.
        "recording": Effort(
            preset="recording",
            neurons=30,
            model=PRESETS["small"],
            pretraining=LoopConfig(epochs=12, learning_rate=1e-3),
            pretraining_windows=16_000,
            pretraining_batch=128,
            finetuning=_finetuning(_RECORDING),
            budget=_RECORDING,
            most=MostTrials(),
            classical_rows=60_000,
            # A recording has few presentations: the last ones before the test teach, too.
            refit=True,
        ),
        # The paper's sizes and epochs on all trials: for a GPU.
        "paper": Effort(
            preset="paper",
            neurons=241,
            model=PRESETS["paper"],
            pretraining=LoopConfig(epochs=50, learning_rate=1e-4),
            pretraining_windows=100_000,
            # The paper's batch of 32 is taken for population signals of some 241 neurons, 7,712 rows: with fewer than
            # thousands a GPU waits for launches.
            pretraining_batch=2_048,
            finetuning=_finetuning(_PAPER),
            budget=_PAPER,
            most=MostTrials(),
            classical_rows=200_000,
            gpu_precision="bf16",
        ),
    }
)
