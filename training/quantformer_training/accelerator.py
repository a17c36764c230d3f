"""Where a network trains: one process, or several through Lightning Fabric.

Losses call submodules directly, so nothing is wrapped: each process computes the loss of its share of every batch, and the
gradients are averaged over the processes before they are clipped. Fabric finds the device, starts the processes (or finds
those that torchrun or SLURM started) and sets the precision; it is imported only where something of this is asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from quantformer.errors import DataError, MissingExtraError, UnavailableError, UsageError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

DEVICES = ("cpu", "cuda")
PRECISIONS = ("float32", "bf16")
#: How many tasks a launcher says it started: torchrun, and a SLURM job step.
_LAUNCHED = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


class Accelerator:
    """One process, in float32 on the CPU unless said otherwise; what each method means where there is more stands with
    `FabricAccelerator`.
    """

    rank = 0
    ranks = 1
    device = torch.device("cpu")

    def __init__(self, device: torch.device | None = None, *, precision: str = "float32") -> None:
        if device is not None:
            self.device = device
        self._narrow = precision == "bf16"
        #: Rows of all batches that were shared out since `begin`.
        self.rows = 0
        self._weight = 1.0

    def begin(self, seed: int) -> None:
        """Begin an epoch: count rows from zero and seed torch's own generator, which differs between processes.

        What must be the same in all of them (the order of an epoch's rows) is drawn from generators of their own.
        """
        self.rows = 0
        # torch's generator on the CPU reads the lowest 32 bits only.
        torch.manual_seed((seed + self.rank * 0x9E3779B1) % (1 << 32))

    def share(self, rows: Tensor) -> Tensor:
        """This process's part of a batch, ``rows[rank::ranks]`` of its row numbers int64 ``[B]``.

        The next loss counts as much as its rows: a batch need not divide. A process left without a row gets the first,
        which counts nothing.
        """
        self.rows += len(rows)
        if self.ranks == 1:
            return rows
        part = rows[self.rank :: self.ranks]
        self._weight = len(part) * self.ranks / max(len(rows), 1)
        return part if len(part) else rows[:1]

    def weighted(self, loss: Tensor) -> Tensor:
        """A loss such that its mean over the processes is the loss of the whole batch (where that is a mean over rows)."""
        return loss if self.ranks == 1 else loss * self._weight

    def autocast(self) -> AbstractContextManager[object]:
        """The precision in which losses are computed."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._narrow else nullcontext()

    def same_everywhere(self, network: nn.Module) -> None:
        """Give every process the first one's weights."""

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace gradients by their mean over the processes; one that no process has stays absent."""

    def mean(self, value: float) -> float:
        """The mean over the processes."""
        return value

    def total(self, tensor: Tensor) -> Tensor:
        """The sum over the processes; the tensor itself is left as it is."""
        return tensor

    def first_says(self, decision: bool) -> bool:
        """What the first process decides, everywhere: clocks differ."""
        return decision

    def random_state(self) -> list[Tensor]:
        """State of torch's generators, uint8, one tensor a process."""
        return [_generators(self.device)]

    def restore_random_state(self, states: Sequence[Tensor]) -> None:
        """Continue where `random_state` was.

        Raises:
            DataError: it was saved by another number of processes, or on another kind of device.
        """
        expected = len(_generators(self.device))
        if len(states) != self.ranks or any(len(state) != expected for state in states):
            raise DataError(
                f"the checkpoint was saved inside an epoch by {len(states)} processes, or on another device than "
                f"{self.device.type}; now there are {self.ranks}: resume as it was begun, or remove it"
            )
        cpu = len(torch.get_rng_state())
        torch.set_rng_state(states[self.rank][:cpu])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[self.rank][cpu:], self.device)


class FabricAccelerator(Accelerator):
    """A launched `Fabric`: its device, its precision, and this process's place among the others."""

    def __init__(self, fabric: Fabric) -> None:
        super().__init__()
        self._fabric = fabric
        self.rank, self.ranks, self.device = fabric.global_rank, fabric.world_size, fabric.device

    def autocast(self) -> AbstractContextManager[object]:
        """Fabric's precision: bf16 for matrix products, float32 for what needs it and for every weight."""
        return self._fabric.autocast()

    def same_everywhere(self, network: nn.Module) -> None:
        """Broadcast weights and buffers."""
        if self.ranks > 1:
            with torch.no_grad():
                for tensor in network.state_dict().values():
                    torch.distributed.broadcast(tensor, src=0)

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """One sum over the processes for all gradients together."""
        if self.ranks == 1:
            return
        # The last numbers say who has which gradient: an absent one must stay absent, or weight decay would reach it.
        present = torch.tensor([parameter.grad is not None for parameter in parameters], device=self.device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.flatten().float() for grad in grads] + [present.float()])
        torch.distributed.all_reduce(flat)
        found = flat[-len(parameters) :].tolist()
        start = 0
        for parameter, count in zip(parameters, found, strict=True):
            mean = flat[start : start + parameter.numel()].view_as(parameter) / self.ranks
            parameter.grad = mean.to(parameter.dtype) if count else None
            start += parameter.numel()

    def mean(self, value: float) -> float:
        """In float64; the same bits everywhere."""
        if self.ranks == 1:
            return value
        return float(self.total(torch.tensor(value, dtype=torch.float64, device=self.device))) / self.ranks

    def total(self, tensor: Tensor) -> Tensor:
        """A new tensor."""
        summed = tensor.detach().clone()
        if self.ranks > 1:
            torch.distributed.all_reduce(summed)
        return summed

    def first_says(self, decision: bool) -> bool:
        """By broadcast."""
        if self.ranks == 1:
            return decision
        said = torch.tensor(int(decision), device=self.device)
        torch.distributed.broadcast(said, src=0)
        return bool(said.item())

    def random_state(self) -> list[Tensor]:
        """Gathered from all processes, which must all ask."""
        own = _generators(self.device).to(self.device)
        states = [torch.empty_like(own) for _ in range(self.ranks)]
        if self.ranks > 1:
            torch.distributed.all_gather(states, own)
        else:
            states = [own]
        return [state.cpu() for state in states]


def accelerator_of(
    *, device: str = "cpu", precision: str = "float32", processes: int = 1, nodes: int = 1
) -> Accelerator:
    """The accelerator for these wishes; with several processes this starts the others, which run the same command line.

    ``processes`` is a node's number, one a GPU on ``cuda``. Under torchrun or srun the processes are there already, and
    their number must be ``processes`` x ``nodes``.

    Raises:
        UsageError: an unknown device or precision, no process, or a launcher started another number of them.
        UnavailableError: ``cuda`` was asked for and there is no such device, or not so many.
        MissingExtraError: lightning-fabric is not installed and is needed.
    """
    _check_known(device=device, precision=precision)
    if processes < 1 or nodes < 1:
        raise UsageError(f"processes = {processes} and nodes = {nodes}; expected at least 1 of each")
    for variable in _LAUNCHED:
        started = os.environ.get(variable, "")
        # The processes that Fabric itself starts are told the same number.
        if started.isdecimal() and int(started) != processes * nodes:
            raise UsageError(
                f"{variable} says that a launcher started {started} processes, the run asks for {processes} a node on {nodes} "
                "nodes; make them equal, or each process would train alone and write the same files"
            )
    if device == "cuda":
        _require_gpus(processes)
    if device == "cpu" and precision == "float32" and processes * nodes == 1:
        return Accelerator()
    try:
        from lightning_fabric import Fabric
    except ModuleNotFoundError:
        raise MissingExtraError(
            package="lightning-fabric", extra="train", purpose=f"training on {device} in {precision}, {processes} processes"
        ) from None
    fabric = Fabric(
        accelerator=device,
        devices=processes,
        num_nodes=nodes,
        strategy="ddp" if processes * nodes > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16" else "32-true",
    )
    fabric.launch()
    return FabricAccelerator(fabric)


def device_here(asked: str) -> str:
    """What ``auto`` means on this machine: ``cuda`` where torch sees a GPU that it can use, else ``cpu``. The others are meant
    as they are asked for.

    Raises:
        UsageError: no such device is known.
        UnavailableError: ``cuda`` was asked for and torch sees no GPU.
    """
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return one_process(device=asked).device.type


def one_process(*, device: str, precision: str = "float32") -> Accelerator:
    """This process alone, on ``cpu`` in float32 or on the first GPU that it sees in ``precision``, whatever launcher started it:
    for one of many runs, each of which is trained by one process.

    Raises:
        UsageError: no such device or precision is known.
        UnavailableError: ``cuda`` was asked for and torch sees no GPU.
    """
    _check_known(device=device, precision=precision)
    if device == "cpu":
        return Accelerator()
    _require_gpus(1)
    return Accelerator(torch.device(device, 0), precision=precision)


def _check_known(*, device: str, precision: str) -> None:
    for name, value, known in (("device", device, DEVICES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise UsageError(f"{name} is {value!r}, expected one of {', '.join(known)}")


def _require_gpus(processes: int) -> None:
    """See to it that every process has a GPU.

    Raises:
        UnavailableError: there are fewer.
    """
    if torch.cuda.device_count() < processes:
        raise UnavailableError(
            f"device 'cuda' with {processes} processes wants as many GPUs, {torch.cuda.device_count()} are seen; "
            "use device 'cpu', fewer processes, or a torch built for CUDA"
        )


def _generators(device: torch.device) -> Tensor:
    """States of the generators that training draws from, one after the other."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return torch.cat(states)
