"""Tests of where a network trains: several real processes agree with one, bf16 stays close, and wrong wishes are refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from running_service import PATIENCE_S, clean_environment, free_ports, until
from torch import Tensor
from training_program import Wish, train

from quantformer.errors import DataError, MissingExtraError, UnavailableError, UsageError
from quantformer_training.accelerator import Accelerator, FabricAccelerator, accelerator_of, device_here, one_process

PROGRAM = Path(__file__).with_name("training_program.py")
#: Starting two processes that import torch and Fabric takes a while on a busy machine.
LONG_S = 5 * PATIENCE_S


def weights(path: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = torch.load(path, weights_only=True)
    return found


def told(output: str) -> list[tuple[float, float, int]]:
    """Loss, validation and rows of every epoch that a program reported."""
    lines = [line.split() for line in output.splitlines() if line.startswith("epoch")]
    return [(float(loss), float(validation), int(rows)) for _, _, loss, validation, rows in lines]


def run(folder: Path, kinds: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), kinds, *words],
        capture_output=True, text=True, timeout=LONG_S, check=True, env=clean_environment(),
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("alone")
    return folder, run(folder, "regression,direct,pretraining").stdout


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The same training in two processes, which Fabric starts."""
    folder = tmp_path_factory.mktemp("pair")
    return folder, run(folder, "regression,direct,pretraining", "processes=2").stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["regression", "direct"])
def test_two_processes_learn_what_one_learns(alone: tuple[Path, str], pair: tuple[Path, str], kind: str) -> None:
    """Batches of seven rows, so that the shares differ, and a last one of a single row, which one process goes without."""
    one = weights(alone[0] / kind / "weights-0.pt")
    first, second = (weights(pair[0] / kind / f"weights-{rank}.pt") for rank in (0, 1))
    for name, value in one.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=0.0, atol=1e-6)
    assert torch.equal(one["7.unused"], torch.ones(3)), "what has no gradient must not decay"
    moved = max(float((value - weights_at_start()[name]).abs().max()) for name, value in one.items())
    assert moved > 0.01, "nothing was learned"


def weights_at_start() -> dict[str, Tensor]:
    from training_program import regression_network

    return regression_network(0.0).state_dict()


@pytest.mark.slow
def test_only_the_first_process_reports_and_its_figures_are_those_of_the_whole(
    alone: tuple[Path, str], pair: tuple[Path, str]
) -> None:
    one, two = told(alone[1])[:6], told(pair[1])[:6]
    assert len(told(pair[1])) == len(told(alone[1])) == 9
    for ours, theirs in zip(one, two, strict=True):
        assert ours == pytest.approx(theirs, abs=1e-6)
        assert ours[2] == 330


@pytest.mark.slow
def test_two_processes_pretrain_one_auto_encoder(alone: tuple[Path, str], pair: tuple[Path, str]) -> None:
    first, second = (weights(pair[0] / "pretraining" / f"weights-{rank}.pt") for rank in (0, 1))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    # Codes begin as outputs of the first process's share, so the two runs are not the same; they learn as much.
    one, two = told(alone[1])[6:], told(pair[1])[6:]
    assert two[-1][1] < two[0][1]
    assert two[-1][1] == pytest.approx(one[-1][1], rel=0.25)


def begin(folder: Path, rank: int, port: int) -> subprocess.Popen[str]:
    """One of two processes, started as torchrun starts them."""
    place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(folder), "pretraining", "processes=2"],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=clean_environment(**place, **meeting),
    )  # fmt: skip


def both(folder: Path, *, kill: bool) -> None:
    with free_ports(1) as (port,):
        children = [begin(folder, rank, port) for rank in (0, 1)]
    try:
        if kill:
            until(lambda: (folder / "pretraining" / "test.pt").exists() or None)
            for child in children:
                child.send_signal(signal.SIGKILL)
        for child in children:
            child.communicate(timeout=LONG_S)
            assert (child.returncode == 0) != kill
    finally:
        for child in children:
            child.kill()
            child.wait()


@pytest.mark.slow
def test_two_processes_that_were_killed_resume_to_the_same_bits(pair: tuple[Path, str], tmp_path: Path) -> None:
    both(tmp_path, kill=True)
    assert not list(tmp_path.rglob("weights-*.pt"))
    both(tmp_path, kill=False)
    for rank in (0, 1):
        whole, killed = (weights(folder / "pretraining" / f"weights-{rank}.pt") for folder in (pair[0], tmp_path))
        assert all(torch.equal(value, killed[name]) for name, value in whole.items())


@pytest.fixture(scope="module")
def bf16() -> Accelerator:
    # Fabric announces its choice; that is its business.
    return accelerator_of(precision="bf16")


# In pre-training another run begins where a code is chosen or replaced otherwise, and how soon differs between processors.
@pytest.mark.parametrize(("kind", "near"), [("regression", 0.001), ("pretraining", 0.2)])
def test_bf16_learns_nearly_the_same(
    bf16: Accelerator, tmp_path: Path, kind: str, near: float, capsys: pytest.CaptureFixture[str]
) -> None:
    found = []
    for name, machine in (("float32", Accelerator()), ("bf16", bf16)):
        train(kind, tmp_path / name, wish=Wish(epochs=4), machine=machine)
        found.append((weights(tmp_path / name / "weights-0.pt"), told(capsys.readouterr().out)))
    (exact, full), (close, half) = found
    assert all(value.dtype == exact[name].dtype for name, value in close.items()), "weights stay in float32"
    assert any(not torch.equal(value, exact[name]) for name, value in close.items()), "nothing was in bf16"
    assert half[-1][1] < half[0][1]
    assert half[-1][1] == pytest.approx(full[-1][1], rel=near)


def test_losses_are_in_bf16_wherever_they_are_computed(bf16: Accelerator) -> None:
    with bf16.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    with Accelerator().autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


class OneOf(Accelerator):
    """A process among several, as far as sharing goes."""

    def __init__(self, rank: int, ranks: int) -> None:
        super().__init__()
        self.rank, self.ranks = rank, ranks


@given(rows=st.integers(1, 40), ranks=st.integers(1, 8))
def test_shares_cover_a_batch_and_weigh_as_much_as_they_hold(rows: int, ranks: int) -> None:
    values = torch.arange(rows, dtype=torch.float64) ** 2 + 1.0
    machines = [OneOf(rank, ranks) for rank in range(ranks)]
    parts = [machine.share(torch.arange(rows)) for machine in machines]
    losses = [machine.weighted(values[part].mean()) for machine, part in zip(machines, parts, strict=True)]
    assert sum(map(float, losses)) / ranks == pytest.approx(float(values.mean()))
    assert {int(row) for part in parts for row in part} == set(range(rows))
    assert all(machine.rows == rows for machine in machines)


def test_processes_draw_apart_and_each_the_same_again() -> None:
    drawn = {}
    for rank in (0, 1):
        machine = OneOf(rank, 2)
        for time_ in (0, 1):
            machine.begin(5)
            drawn[rank, time_] = torch.rand(4)
    assert torch.equal(drawn[0, 0], drawn[0, 1])
    assert torch.equal(drawn[1, 0], drawn[1, 1])
    assert not torch.equal(drawn[0, 0], drawn[1, 0])


def test_a_random_state_continues_where_it_was() -> None:
    machine = Accelerator()
    machine.begin(3)
    torch.rand(5)
    state = machine.random_state()
    expected = torch.rand(5)
    machine.begin(4)
    machine.restore_random_state(state)
    assert torch.equal(torch.rand(5), expected)


@pytest.mark.parametrize("states", [2, 0])
def test_a_random_state_of_another_number_of_processes_is_refused(states: int) -> None:
    machine = Accelerator()
    with pytest.raises(DataError, match=rf"by {states} processes.*now there are 1: resume as it was begun"):
        machine.restore_random_state(machine.random_state() * states)


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"device": "tpu"}, "device is 'tpu', expected one of cpu, cuda"),
        ({"precision": "fp8"}, "precision is 'fp8', expected one of float32, bf16"),
        ({"processes": 0}, "processes = 0"),
        ({"nodes": -1}, "nodes = -1"),
    ],
)
def test_wishes_that_make_no_sense_are_refused(wish: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        accelerator_of(**wish)  # type: ignore[arg-type]


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_launcher_that_started_another_number_is_refused(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "4")
    with pytest.raises(UsageError, match=rf"{variable} says that a launcher started 4 processes, the run asks for 1"):
        accelerator_of()
    monkeypatch.setenv(variable, "1")
    assert type(accelerator_of()) is Accelerator


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_said() -> None:
    for refused in (accelerator_of, one_process):
        with pytest.raises(UnavailableError, match="0 are seen; use device 'cpu'"):
            refused(device="cuda")
    with pytest.raises(UnavailableError, match="0 are seen; use device 'cpu'"):
        device_here("cuda")


def test_auto_is_the_gpu_where_there_is_one_and_what_is_asked_for_is_meant() -> None:
    assert device_here("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device_here("cpu") == "cpu"
    for asked in ("tpu", "", "cuda:1"):
        with pytest.raises(UsageError, match=f"device is '{asked}', expected one of cpu, cuda"):
            device_here(asked)


def test_one_of_many_runs_does_not_ask_who_else_a_launcher_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    machine = one_process(device="cpu")
    assert (type(machine), machine.ranks, machine.device) == (Accelerator, 1, torch.device("cpu"))


def test_one_process_computes_products_in_the_precision_that_it_was_made_with() -> None:
    factors = torch.ones(2, 2)
    for precision, found in (("float32", torch.float32), ("bf16", torch.bfloat16)):
        with Accelerator(precision=precision).autocast():
            assert (factors @ factors).dtype == found
    with pytest.raises(UsageError, match="precision is 'float16', expected one of float32, bf16"):
        one_process(device="cpu", precision="float16")
    # A CPU trains in float32 whatever a study's GPUs do.
    with one_process(device="cpu", precision="bf16").autocast():
        assert (factors @ factors).dtype == torch.float32


def test_fabric_is_imported_only_where_it_is_needed() -> None:
    program = (
        "import sys\n"
        "from quantformer_training.accelerator import accelerator_of\n"
        "accelerator_of()\n"
        "assert not [name for name in sys.modules if 'lightning' in name]\n"
        "sys.modules['lightning_fabric'] = None\n"
        "accelerator_of(precision='bf16')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LONG_S, check=False, env=clean_environment()
    )
    assert MissingExtraError.__name__ in done.stderr
    assert "pip install 'quantformer[train]'" in done.stderr


def test_one_process_of_fabric_is_as_good_as_none(bf16: Accelerator) -> None:
    assert isinstance(bf16, FabricAccelerator)
    assert (bf16.rank, bf16.ranks, bf16.device) == (0, 1, torch.device("cpu"))
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.full((3,), 2.0)
    bf16.average_gradients([parameter])
    assert parameter.grad.tolist() == [2.0] * 3
    assert bf16.mean(0.1) == 0.1
    assert bf16.first_says(True) is True
    assert np.array_equal(bf16.total(torch.ones(2)).numpy(), np.ones(2))
    bf16.restore_random_state(bf16.random_state())
    assert "LOCAL_RANK" not in os.environ
