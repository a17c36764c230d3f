"""Self-supervised pre-training: windows of any recording, labelled or not (paper section 3.3)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from quantformer.autoencoder import Autoencoder, FrozenAutoencoder
from quantformer.config import ModelConfig
from quantformer.errors import DataError, QuantformerError, RecordingError
from quantformer.forecaster import CLIP
from quantformer.labels import LabelRule
from quantformer.losses import reconstruction_loss
from quantformer.patches import to_patches
from quantformer.quantizer import QuantizedResult, Quantizer
from quantformer.signal import SignalRecipe
from quantformer_training.accelerator import Accelerator
from quantformer_training.ahead import drawn_ahead
from quantformer_training.loop import (
    CHECKPOINT_S,
    LoopConfig,
    LoopResult,
    Report,
    in_batches,
    load_checkpoint,
    run_loop,
    save_checkpoint,
)
from quantformer_training.splits import Split
from quantformer_training.store import Traced
from quantformer_training.trials import Moments, TrialReader

#: File of a pre-trained auto-encoder in its directory.
PRETRAINED = "pretrained.pt"


@dataclass(frozen=True, kw_only=True, eq=False)
class Windows:
    """Whole trials' worth of dF/F, ``[n, 160]`` float32, and whether the response part is active, bool ``[n]``."""

    dff: NDArray[np.float32]
    active: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Sequence[Windows]) -> Windows:
        """All windows of several sources."""
        return cls(dff=np.concatenate([p.dff for p in parts]), active=np.concatenate([p.active for p in parts]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Pretrained:
    """A frozen auto-encoder, the scale of its input, and the mean patch ``[K, frames]`` that each code stands for."""

    config: ModelConfig
    autoencoder: FrozenAutoencoder
    signal_scale: float
    code_patch: Tensor
    result: LoopResult


def whole(recording: Traced) -> Split:
    """Every frame may be learned from: for recordings on which nothing is tested."""
    return Split(train=((0, recording.frames),), validation=(), test=())


def random_windows(
    recording: Traced, *, split: Split, part: str, count: int, recipe: SignalRecipe, rule: LabelRule, seed: int
) -> Windows:
    """About ``count`` windows at random moments of a part, of random neurons.

    Raises:
        RecordingError: no span of the part is as long as a window, or no window there is usable.
    """
    rng = np.random.default_rng(seed)
    spans = [(low + recipe.baseline_frames, high - recipe.response_frames) for low, high in split.spans(part)]
    spans = [(low, high) for low, high in spans if high > low]
    if not spans:
        raise RecordingError(
            f"{recording.provenance.source}: no span of {part} holds a window of {recipe.window_frames} frames"
        )
    room = np.array([high - low for low, high in spans], np.float64)
    moments_wanted = max(1, int(np.ceil(count / recording.neurons)))
    span = rng.choice(len(spans), moments_wanted, p=room / room.sum())
    frame = np.array([rng.integers(*spans[i]) for i in span], np.int64)
    moments = Moments(
        frame=frame,
        trial=np.full(len(frame), -1),
        pseudo=np.ones(len(frame), bool),
        category=("",) * len(frame),
        stimulus_id=("",) * len(frame),
        features=({},) * len(frame),
    )
    trials = TrialReader(recording, split=split, recipe=recipe, rule=rule).read(moments, part=part)
    if not trials.valid.any():
        raise RecordingError(
            f"{recording.provenance.source}: none of {len(frame)} random windows of {part} is usable; left out: "
            f"{dict(trials.rejected)}"
        )
    both = np.concatenate([trials.baseline, trials.response], axis=-1)
    return Windows(dff=both[trials.valid][:count], active=trials.active[trials.valid][:count])


def pretrain(
    *,
    train: Windows,
    validation: Windows,
    config: ModelConfig,
    loop: LoopConfig,
    report: Report,
    batch: int = 32,
    quantized: bool = True,
    checkpoint: Path | None = None,
    accelerator: Accelerator | None = None,
    checkpoint_s: float = CHECKPOINT_S,
) -> Pretrained:
    """Train a masked quantising auto-encoder and freeze it. At least one window of each kind is needed. Not ``quantized``, it
    is a standard auto-encoder, whose codes mean nothing.

    ``accelerator`` and ``checkpoint_s`` as in `run_loop`; what is returned is on the CPU.
    """
    machine = accelerator or Accelerator()
    torch.manual_seed(loop.seed)
    scale = float(np.median(train.dff.std(axis=1))) or 1.0
    network = Autoencoder(config, quantized=quantized)
    if machine.ranks > 1:
        network.quantizer = _SharedQuantizer(codes=config.codes, d=config.d, machine=machine)
    data = _scaled(train, scale).to(machine.device)
    active = torch.from_numpy(train.active).to(machine.device)
    beta = float((~train.active).sum() / max(int(train.active.sum()), 1))
    held = _scaled(validation, scale)
    # Validation masks are drawn once, so that epochs are compared on the same task.
    generator = torch.Generator().manual_seed(loop.seed)
    held_masks = torch.rand(len(held), config.patches, generator=generator) < config.mask_probability
    windows, part = len(held), slice(machine.rank, None, machine.ranks)
    held, held_masks = held[part].to(machine.device), held_masks[part].to(machine.device)

    def loss_of(rows: Tensor, masked: Tensor) -> Tensor:
        made = network(data[rows], masked)
        target = to_patches(data[rows], patch_frames=config.patch_frames)
        # beta is capped: at 5 % active it would be 19, and a single batch would swing with its active rows.
        rebuilt = reconstruction_loss(
            made.patches, target, masked=made.masked, active=active[rows], beta=min(beta, 4.0)
        )
        loss: Tensor = made.quantization.loss + rebuilt
        return loss

    def draw(epoch: int) -> tuple[Tensor, Tensor]:
        # Of its own: order and masks are the same in every process, whatever dropout draws in each.
        generator = torch.Generator().manual_seed(loop.seed * 1_000_003 + epoch)
        order = torch.randperm(len(data), generator=generator)
        noise = [torch.rand(len(rows), config.patches, generator=generator) for rows in in_batches(order, batch)]
        return order.to(machine.device), (torch.cat(noise) < config.mask_probability).to(machine.device)

    def losses(drawn: Callable[[int], tuple[Tensor, Tensor]], epoch: int) -> Iterator[Callable[[], Tensor]]:
        order, masked = drawn(epoch)
        for place in in_batches(torch.arange(len(order), device=machine.device), batch):
            ours = machine.share(place)
            yield partial(loss_of, order[ours], masked[ours])

    def validate() -> float:
        total = 0.0
        for rows in in_batches(torch.arange(len(held)), 1024):
            made = network(held[rows], held_masks[rows])
            target = to_patches(held[rows], patch_frames=config.patch_frames)
            none = torch.zeros(len(rows), dtype=torch.bool, device=machine.device)
            total += float(reconstruction_loss(made.patches, target, masked=made.masked, active=none)) * len(rows)
        return total * machine.ranks / windows

    contents = hashlib.sha256(train.dff.tobytes() + train.active.tobytes() + validation.dff.tobytes()).hexdigest()
    mark = f"pretrain {config} {loop} batch={batch} quantized={quantized} {contents[:16]}"
    with drawn_ahead(draw, epochs=loop.most_epochs) as drawn:
        result = run_loop(
            stage="pre-training", network=network, config=loop, losses=partial(losses, drawn), validate=validate,
            report=report, checkpoint=checkpoint, fingerprint=mark, accelerator=machine, checkpoint_s=checkpoint_s,
        )  # fmt: skip
    frozen = network.freeze()
    # Where the windows are: there may be millions.
    code_patch = mean_code_patches(frozen, data, config=config).cpu()
    return Pretrained(
        config=config,
        autoencoder=frozen.cpu(),
        signal_scale=scale,
        code_patch=code_patch,
        result=result,
    )


class _SharedQuantizer(Quantizer):
    """A quantiser whose batch is shared among processes: usage counts all of it, and the codes that replace dead ones are
    outputs of the first process's share.
    """

    def __init__(self, *, codes: int, d: int, machine: Accelerator) -> None:
        super().__init__(codes=codes, d=d)
        self.machine = machine

    def forward(self, encoded: Tensor) -> QuantizedResult:
        """As `Quantizer`."""
        result = super().forward(encoded)
        if self.training:
            counts = torch.bincount(result.codes.flatten(), minlength=len(self.usage)).to(self.usage.dtype)
            self.usage += self.machine.total(counts) - counts
        return result

    def _replace_dead(self, encoded: Tensor) -> None:
        super()._replace_dead(encoded)
        if (int(self.steps) - 1) % self.replace_every == 0:
            self.machine.same_everywhere(self)


def _scaled(windows: Windows, scale: float) -> Tensor:
    return torch.from_numpy(windows.dff / np.float32(scale)).clamp(-CLIP, CLIP)


def save_pretrained(pretrained: Pretrained, directory: Path) -> None:
    """Write what `load_pretrained` reads: ``pretrained.pt``, weights and plain numbers only."""
    state = {
        "config": asdict(pretrained.config), "autoencoder": pretrained.autoencoder.state_dict(),
        "signal_scale": pretrained.signal_scale, "code_patch": pretrained.code_patch,
        "result": asdict(pretrained.result), "codebook_sha256": pretrained.autoencoder.codebook.digest(),
    }  # fmt: skip
    save_checkpoint(directory / PRETRAINED, state, fingerprint=PRETRAINED)


def load_pretrained(directory: Path) -> Pretrained:
    """Read a pre-trained auto-encoder; no code is unpickled.

    Raises:
        DataError: the file is missing, damaged, of a newer schema, or its codebook was altered.
    """
    path = directory / PRETRAINED
    if not path.is_file():
        raise DataError(f"{path} does not exist; make it with 'quantformer pretrain --out {directory}'")
    state = load_checkpoint(path, fingerprint=PRETRAINED)
    try:
        found = tuple(state["autoencoder"]["codebook.codebook"].shape)
        if found != (state["config"]["codes"], state["config"]["d"]):
            raise DataError(f"its codebook is {found}")
        config = ModelConfig(**state["config"])
        frozen = Autoencoder(config).freeze()
        frozen.load_state_dict(state["autoencoder"])
        result = LoopResult(**state["result"])
        made = Pretrained(
            config=config, autoencoder=frozen, signal_scale=float(state["signal_scale"]),
            code_patch=state["code_patch"], result=result,
        )  # fmt: skip
        if made.code_patch.shape != (config.codes, config.patch_frames) or not 0.0 < made.signal_scale < math.inf:
            raise DataError(f"code patches {tuple(made.code_patch.shape)}, signal scale {made.signal_scale}")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, QuantformerError) as error:
        # torch lists every missing weight, a line each.
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} does not hold a pre-trained auto-encoder ({reason}); make it anew") from None
    if frozen.codebook.digest() != state["codebook_sha256"]:
        raise DataError(f"{path}: the codebook does not have the hash it was saved with; make it anew")
    return made


@torch.no_grad()
def mean_code_patches(autoencoder: FrozenAutoencoder, data: Tensor, *, config: ModelConfig) -> Tensor:
    """Mean patch ``[K, frames]`` of the windows ``[n, 160]`` that each code stood for; zeros for an unused code."""
    total = torch.zeros(config.codes, config.patch_frames, device=data.device)
    count = torch.zeros(config.codes, device=data.device)
    for rows in in_batches(data, 1024):
        codes = autoencoder.codes(rows, patch_frames=config.patch_frames).flatten()
        patches = to_patches(rows, patch_frames=config.patch_frames).flatten(0, 1)
        total.index_add_(0, codes, patches)
        count += torch.bincount(codes, minlength=config.codes)
    return total / count.clamp_min(1.0)[:, None]
