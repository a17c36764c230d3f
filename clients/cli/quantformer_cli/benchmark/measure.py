"""Measuring: conditions take turns, each client, each bare run and each disturbance in a process of its own."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quantformer.errors import UsageError
from quantformer_cli.benchmark.bare import Bare
from quantformer_cli.benchmark.disturb import Disturbance
from quantformer_cli.benchmark.load import Load
from quantformer_cli.benchmark.plan import Condition, Pace
from quantformer_cli.benchmark.results import FIGURES, Machine, Result, figure
from quantformer_cli.benchmark.stamps import STAGES, Corrected, Heard, Ns, Sent, corrected, durations, stage_means
from quantformer_cli.benchmark.usage import Meter, Usage, service_processes, together
from quantformer_cli.benchmark.worker import Worker, WorkerError
from quantformer_client import Connection, wire
from quantformer_client.errors import ClientError
from quantformer_training.jobs import cores
from quantformer_training.machine import processor

_LOAD, _BARE, _DISTURB = (f"quantformer_cli.benchmark.{name}" for name in ("load", "bare", "disturb"))
#: Questions that yield a result each, and the code of their answers on the wire.
_KINDS: dict[str, tuple[Literal["standing", "announced", "probe"], ...]] = {
    "standing": ("standing",),
    "announced": ("announced",),
    "both": ("standing", "announced"),
    "none": ("probe",),
}
_ASKED = {
    "standing": int(wire.Asked.STANDING),
    "announced": int(wire.Asked.ANNOUNCED),
    "probe": int(wire.Asked.ANNOUNCED),
}
_PINGS = 50
#: A phase is settled this long after a worker before it ended, in s.
_SETTLE_S = 0.2


@dataclass(frozen=True, kw_only=True)
class Target:
    """The service that is measured: where it listens, the bundle on disk for bare inference (None: not at hand), and the
    supervisor's process id where it runs on this machine.
    """

    host: str
    http_port: int
    zmq_port: int
    pub_port: int
    tcp_port: int
    token: str
    neuron_ids: tuple[str, ...]
    stimulus_ids: tuple[str, ...]
    baseline_frames: int
    provider: Literal["auto", "cpu", "cuda"]
    threads: int
    bundle: Path | None
    root: int | None
    precision: Literal["float32", "int8", "float16"] = "float32"

    @property
    def local(self) -> bool:
        """Whether client and engine share a machine, and so a clock."""
        return self.host in ("127.0.0.1", "localhost", "::1")

    def rois(self, count: int) -> list[str]:
        """So many ROIs: the bundle's neurons first, then ids that it does not know."""
        return list(self.neuron_ids[:count]) + [f"bench-{number}" for number in range(count - len(self.neuron_ids))]

    def stimuli(self, count: int) -> list[str]:
        """So many alternatives: the bundle's stimuli, over again where it has fewer."""
        return [self.stimulus_ids[number % len(self.stimulus_ids)] for number in range(count)]


@dataclass(kw_only=True, eq=False)
class _Phase:
    """One round of one condition and kind: durations by name, and counts."""

    durations: dict[str, Ns]
    corrected: list[Corrected]
    counts: dict[str, int]


@dataclass(kw_only=True, eq=False)
class _Gathered:
    """Everything of one condition so far."""

    condition: Condition
    phases: dict[str, list[_Phase]] = field(default_factory=dict)
    usage: list[dict[str, Usage]] = field(default_factory=list)
    disturbed: dict[str, float] = field(default_factory=dict)
    clock: tuple[int, int] = (0, 0)
    failed: str = ""


class Bench:
    """Measures conditions on a target. ``say`` hears of each phase before it begins; `notes` of what is not measured."""

    def __init__(self, target: Target, pace: Pace, *, say: Callable[[str], None]) -> None:
        self._target, self._pace, self._say = target, pace, say
        self.notes: list[str] = []
        self._bares: dict[tuple[int, int, int, bool], list[Ns]] = {}
        if target.bundle is None:
            self._note(
                "bare session.run is not measured: the bundle is not at hand; give --bundle DIR beside --connect"
            )
        if target.root is None:
            self._note("CPU and memory of the service are not measured: it runs on another machine, or as another user")

    def measure(self, conditions: Sequence[Condition]) -> list[Result]:
        """Every condition in every round, one after the other; a condition that fails is told and not tried again."""
        gathered = [_Gathered(condition=one) for one in conditions]
        with tempfile.TemporaryDirectory(prefix="quantformer-bench-") as folder:
            for number in range(self._pace.rounds):
                for one in gathered:
                    if one.failed:
                        continue
                    self._say(f"round {number + 1} of {self._pace.rounds}: {one.condition.label}")
                    try:
                        self._phase(one, number, Path(folder))
                        self._bare(one.condition, number, Path(folder))
                    except (WorkerError, ClientError) as error:
                        one.failed = str(error)
        return [result for one in gathered for result in _results(one, bare=self._bares.get(self._asks(one.condition), []))]

    # --- bare inference -------------------------------------------------------------------------------------------------

    def _asks(self, condition: Condition) -> tuple[int, int, int, bool]:
        """What decides a bare run: neurons, stimuli, every how many frames, and whether one ROI alone is probed."""
        every = self._pace.every if condition.questions in ("announced", "none") else 1
        return condition.neurons, condition.stimuli, every, condition.questions == "none"

    def _bare(self, condition: Condition, number: int, folder: Path) -> None:
        """Once a round for all conditions that ask the graph for the same rows as often."""
        target, pace = self._target, self._pace
        asks = self._asks(condition)
        done = self._bares.setdefault(asks, [])
        if target.bundle is None or len(done) > number:
            return
        out = folder / "bare.npz"
        neurons, stimuli, every, probe = asks
        frames = -(-pace.frames_a_round // every)
        work = Bare(
            bundle=str(target.bundle.resolve()),
            provider=target.provider,
            precision=target.precision,
            threads=target.threads,
            rois=target.rois(neurons),
            stimuli=target.stimuli(stimuli),
            probe=probe,
            forecast=pace.detail == "forecast" and not probe,
            rate_hz=pace.rate_hz / every,
            jitter=pace.jitter / every,
            frames=frames,
            seed=pace.seed + number,
            out=str(out),
        )
        try:
            with Worker(_BARE, work) as worker:
                worker.wait_ready()
                time.sleep(_SETTLE_S)
                worker.go()
                worker.result(within_s=pace.frames_a_round / pace.rate_hz)
        except WorkerError as error:
            self._note(f"bare session.run is not measured for {condition.label}: {error}")
            return
        with np.load(out, allow_pickle=False) as arrays:
            done.append(arrays["took_ns"])

    # --- one phase ------------------------------------------------------------------------------------------------------

    def _phase(self, one: _Gathered, number: int, folder: Path) -> None:
        target, condition, pace = self._target, one.condition, self._pace
        offset_ns, uncertainty_ns = (0, 0) if target.local else clock_offset(target)
        one.clock = (offset_ns, uncertainty_ns)
        loads = [
            self._load(condition, number=number, stream=stream, folder=folder) for stream in range(condition.sessions)
        ]
        seconds = loads[0].frames / pace.rate_hz
        with ExitStack() as stack:
            workers = [stack.enter_context(Worker(_LOAD, load)) for load in loads]
            for worker in workers:
                worker.wait_ready()
            with self._disturbed(one, seconds):
                time.sleep(_SETTLE_S)
                with Meter(self._processes([worker.pid for worker in workers])) as meter:
                    for worker in workers:
                        worker.go()
                    counts = [worker.result(within_s=seconds) for worker in workers]
        one.usage.append(meter.usage())
        for kind in _KINDS[condition.questions]:
            found = [
                _read(Path(load.out), kind=kind, load=load, pace=pace, counts=count, offset_ns=offset_ns)
                for load, count in zip(loads, counts, strict=True)
            ]
            one.phases.setdefault(kind, []).append(_pooled(found))

    def _load(self, condition: Condition, *, number: int, stream: int, folder: Path) -> Load:
        target, pace = self._target, self._pace
        return Load(
            transport=condition.transport,
            host=target.host,
            http_port=target.http_port,
            zmq_port=target.zmq_port,
            pub_port=target.pub_port,
            tcp_port=target.tcp_port,
            token=target.token,
            rois=target.rois(condition.neurons),
            stimuli=target.stimuli(condition.stimuli),
            questions=condition.questions,
            detail=pace.detail,
            every=pace.every,
            rate_hz=pace.rate_hz,
            jitter=pace.jitter,
            frames=pace.warm_up + pace.frames_a_round,
            phase=stream / condition.sessions,
            seed=pace.seed + 1000 * stream + number,
            out=str(folder / f"stream-{stream}.npz"),
        )

    def _processes(self, clients: list[int]) -> dict[str, Any]:
        import psutil

        found: dict[str, Any] = {} if self._target.root is None else service_processes(self._target.root)
        names = ["client"] if len(clients) == 1 else [f"client {number}" for number in range(1, len(clients) + 1)]
        return found | {name: psutil.Process(pid) for name, pid in zip(names, clients, strict=True)}

    @contextlib.contextmanager
    def _disturbed(self, one: _Gathered, seconds: float) -> Iterator[None]:
        kind, target = one.condition.disturb, self._target
        if kind == "quiet":
            yield
            return
        if kind == "disk":
            with self._stalled_recorder():
                yield
            one.disturbed["seconds"] = one.disturbed.get("seconds", 0.0) + seconds
            return
        work = Disturbance(
            kind=kind,
            host=target.host,
            http_port=target.http_port,
            zmq_port=target.zmq_port,
            pub_port=target.pub_port,
            token=target.token,
            neuron=target.neuron_ids[0],
            stimulus=target.stimulus_ids[0],
            baseline_frames=target.baseline_frames,
            over_s=seconds,
        )
        with Worker(_DISTURB, work) as worker:
            worker.wait_ready()
            worker.go()
            yield
            worker.stop()
            for name, count in worker.result(within_s=60.0).items():
                one.disturbed[name] = one.disturbed.get(name, 0.0) + count

    @contextlib.contextmanager
    def _stalled_recorder(self) -> Iterator[None]:
        """The recorder stopped, as a disk that takes nothing would stop it; it goes on whatever happens."""
        recorder = None if self._target.root is None else service_processes(self._target.root).get("recorder")
        if recorder is None or not hasattr(signal, "SIGSTOP"):
            raise WorkerError(
                "not measured: this service runs no recorder process on this machine that could be stalled"
            )
        os.kill(recorder.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(recorder.pid, signal.SIGCONT)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def clock_offset(target: Target) -> tuple[int, int]:
    """The engine's clock less this machine's, and how far that may be off, in ns: of the quickest of some pings.

    Raises:
        ClientError: the engine does not answer.
    """
    best = (1 << 62, 0)
    with Connection(host=target.host, port=target.zmq_port, token=target.token, client="bench") as connection:
        for _ in range(_PINGS):
            sent_ns = time.perf_counter_ns()
            pong = connection.ask(wire.Ping(), expect=wire.Pong)
            got_ns = time.perf_counter_ns()
            took_ns = (got_ns - sent_ns) - (pong.replied_ns - pong.received_ns)
            offset_ns = (pong.received_ns - sent_ns + pong.replied_ns - got_ns) // 2
            best = min(best, (took_ns, offset_ns))
    return best[1], -(-best[0] // 2)


def _read(path: Path, *, kind: str, load: Load, pace: Pace, counts: dict[str, Any], offset_ns: int) -> _Phase:
    """One client's stamps after its warm-up."""
    with np.load(path, allow_pickle=False) as arrays:
        columns: dict[str, NDArray[Any]] = {name: arrays[name] for name in arrays.files}
    sent = Sent(due_ns=columns["due_ns"], sent_ns=columns["sent_ns"])
    names = ("frame", "about", "received_ns", "window_ready_ns", "submitted_ns", "done_ns", "published_ns", "got_ns")
    heard = Heard(**{name: columns[name] for name in names}, late=columns["late"].astype(np.bool_))
    heard = heard.where((columns["asked"] == _ASKED[kind]) & (heard.about >= pace.warm_up))
    rows = np.arange(load.frames) if kind == "standing" else columns["probed"]
    asked = rows[rows >= pace.warm_up]
    found = corrected(
        sent,
        heard,
        asked=asked,
        latest_wins=kind == "standing",
        end_ns=int(columns["ended_ns"]),
        period_ns=round(1e9 / pace.rate_hz),
    )
    happened = counts["counters"]
    tally = {
        "sent": counts["filled"] + load.frames,
        "received": int(happened.get("frames", 0)),
        "asked": len(asked),
        "answers": len(heard),
        "late": int(np.count_nonzero(heard.late)),
        "short": int(np.count_nonzero(heard.frame < heard.about)),
        **{f"refused {code}": int(count) for code, count in counts["refused"].items()},
    }
    return _Phase(durations=durations(sent, heard, offset_ns=offset_ns), corrected=[found], counts=tally)


def _pooled(phases: list[_Phase]) -> _Phase:
    """Several clients of one phase, or several phases, as one."""
    names = phases[0].durations
    counts: dict[str, int] = {}
    for phase in phases:
        for name, count in phase.counts.items():
            counts[name] = counts.get(name, 0) + count
    return _Phase(
        durations={name: np.concatenate([phase.durations[name] for phase in phases]) for name in names},
        corrected=[one for phase in phases for one in phase.corrected],
        counts=counts,
    )


def _results(one: _Gathered, *, bare: list[Ns]) -> list[Result]:
    found = []
    for kind in _KINDS[one.condition.questions]:
        phases = one.phases.get(kind, [])
        if one.failed or not phases:
            found.append(Result(condition=one.condition, kind=kind, failed=one.failed or "it was not measured"))
            continue
        whole = _pooled(phases)
        rounds: dict[str, list[Ns]] = {name: [phase.durations[name] for phase in phases] for name in whole.durations}
        rounds["corrected"] = [np.concatenate([item.latency_ns for item in phase.corrected]) for phase in phases]
        rounds["bare"] = bare
        figures = {name: figure(rounds[name]) for name in FIGURES if name in rounds}
        counts = whole.counts
        found.append(
            Result(
                condition=one.condition,
                kind=kind,
                sent=counts["sent"],
                received=counts["received"],
                lost=counts["sent"] - counts["received"],
                refused={name[8:]: count for name, count in counts.items() if name.startswith("refused ")},
                asked=counts["asked"],
                answers=counts["answers"],
                late=counts["late"],
                short=counts["short"],
                missed=sum(item.missed for item in whole.corrected),
                skipped=sum(item.skipped for item in whole.corrected),
                unanswered=sum(item.unanswered for item in whole.corrected),
                figures={name: value for name, value in figures.items() if value is not None},
                stages=stage_means({name: whole.durations[name] for name in STAGES}),
                usage=together(one.usage),
                disturbed=one.disturbed,
                clock=(one.clock[0] / 1e3, one.clock[1] / 1e3),
            )
        )
    return found


def machine() -> Machine:
    """This machine, as it was before the first phase."""
    import psutil

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return Machine(
        processor=processor(),
        cores=os.cpu_count() or 1,
        usable_cores=cores(),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        system=f"{platform.system()} {platform.release()}",
        host=socket.gethostname(),
        load_before=round(load, 2),
    )


def check_stimuli(target: Target) -> None:
    """A bundle without a stimulus cannot be asked anything.

    Raises:
        UsageError: it has none.
    """
    if not target.stimulus_ids or not target.neuron_ids:
        raise UsageError("the bundle names no stimulus or no neuron: there is nothing to ask about; serve another one")
