"""A bundle's graph, ready to be asked: the runtime's session, tensors of fixed addresses and lanes. For one thread to use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer_service.buffers import FORECAST, PROBABILITY, Bucket, Device, Population, Populations, Results, Shape
from quantformer_service.lanes import Lanes
from quantformer_service.runtime import RUNTIME_NAMES, Provider, open_session

#: Rows that a number of threads is measured with, at most; runs of each; and seconds after which it has had enough of them.
MEASURED_ROWS, MEASURED_RUNS, MEASURED_S = 256, 5, 0.3
#: Rows that a pulse computes at most.
PULSE_ROWS = 1024
#: More threads are taken only for being faster by this factor: a core that helps little is better left to the loop.
WORTH_A_THREAD = 1.05


class Network:
    """Questions in, results out: one by `ask`, several at a time by `begin` and `end`.

    ``threads`` are the CPU threads of one question, 0 as many as are fastest for the bundle's neurons; on a GPU they mean
    nothing. ``device`` is for tests: where tensors lie, in place of what the provider asks for.

    Raises:
        ProviderError: the asked provider is not the one that runs.
    """

    def __init__(self, bundle: Bundle, *, provider: Provider, threads: int = 0, device: Device | None = None) -> None:
        self._shape = Shape.of(bundle)
        probability = open_session(bundle, provider=provider, captured=True, outputs=[PROBABILITY])
        self.provider = "cuda" if probability.get_providers()[0] == RUNTIME_NAMES["cuda"] else "cpu"
        self._still = np.zeros((1, 2, self._shape.neuron_width), np.float32)
        if device is None:
            device = Device(name="cuda", padded=True, lanes=2) if self.provider == "cuda" else Device(lanes=threads)
        # Of a small question neither network fills a GPU: both are computed at a time there. On a CPU lanes share out the rows.
        rest = open_session(bundle, provider=provider, captured=True, outputs=FORECAST if device.padded else None)
        self._sessions = {True: [rest, probability] if device.padded else [rest], False: [probability]}
        if device.lanes == 0:
            rows = min(len(bundle.manifest.neuron_ids), MEASURED_ROWS)
            device = Device(lanes=fastest({count: self._timed(count, rows=rows) for count in _candidates()}))
        self._use(device)
        if device.padded:
            self.pulse()  # the first captures its graph

    def _use(self, device: Device) -> None:
        self._device, self._lanes = device, Lanes(device.lanes, apart=self.provider == "cpu")
        self._populations = Populations(self._sessions, shape=self._shape, device=device)
        self._begun: list[Population] = []
        self._last: Bucket | None = None

    @property
    def threads(self) -> int:
        """CPU threads of one question."""
        return self._device.lanes

    def place(self, vectors: NDArray[np.float32]) -> Population:
        """The tensors of the neurons with these vectors; fill its ``baseline`` and ``level``, then `ask` or `begin`."""
        return self._populations.of(vectors)

    def begin(
        self,
        population: Population,
        *,
        stimulus: NDArray[np.float32],
        row_neuron: NDArray[np.int64],
        row_stimulus: NDArray[np.int64],
        then: Callable[[Bucket, Exception | None], None],
        forecast: bool = True,
    ) -> None:
        """Hand the rows to the lanes; inputs as `docs/architecture.md` lists them. Without ``forecast`` only the logits are
        computed, to the same bits on the CPU.

        Of one population one question may be under way, of at most `MOST_POPULATIONS` at a time. ``then`` is called in a
        lane as soon as the rows are computed, with the bucket that has the results or with what a run raised; it must not
        raise.

        Raises:
            ValueError: a row asks about a neuron or stimulus that is not there; ``then`` is not called.
        """
        population.upload()
        bucket = population.bucket(stimuli=len(stimulus), rows=len(row_neuron), forecast=forecast)
        bucket.ask(stimulus=stimulus, row_neuron=row_neuron, row_stimulus=row_stimulus)
        if not bucket.captured:
            self._lanes.end()
            bucket.capture()
        population.busy = True
        self._begun.append(population)
        self._last = bucket if len(row_neuron) <= PULSE_ROWS else None
        self._lanes.begin(bucket.runs, then=lambda error: then(bucket, error))

    def end(self) -> None:
        """Return when all that was begun is answered."""
        try:
            self._lanes.end()
        finally:
            for population in self._begun:
                population.busy = False
            self._begun.clear()

    def ask(
        self,
        population: Population,
        *,
        stimulus: NDArray[np.float32],
        row_neuron: NDArray[np.int64],
        row_stimulus: NDArray[np.int64],
        forecast: bool = True,
    ) -> Results:
        """One question, begun and ended.

        Raises:
            ValueError: a row asks about a neuron or stimulus that is not there.
        """
        raised: list[Exception | None] = []
        buckets: list[Bucket] = []

        def then(bucket: Bucket, error: Exception | None) -> None:
            buckets.append(bucket)
            raised.append(error)

        self.begin(
            population,
            stimulus=stimulus,
            row_neuron=row_neuron,
            row_stimulus=row_stimulus,
            then=then,
            forecast=forecast,
        )
        self.end()
        if raised[0] is not None:
            raise raised[0]
        return buckets[0].results()

    def prepare(self, vectors: NDArray[np.float32], *, stimuli: int, rows: int, forecast: bool = True) -> None:
        """Make tensors for questions of this size and, on a GPU, capture their graph, so that no frame has to."""
        population = self.place(vectors)
        if self._device.padded:
            self._ask_anything(population, stimuli=stimuli, rows=rows, forecast=forecast)
        else:
            population.bucket(stimuli=stimuli, rows=rows, forecast=forecast)

    def pulse(self) -> None:
        """What was asked last, or the least question there is where that would take long, answered to nobody: a GPU that has
        nothing to do lowers its clocks, and its launches grow slow.
        """
        bucket = self._last or self.place(self._still).bucket(stimuli=1, rows=1, forecast=False)
        self._lanes.run(bucket.runs)

    def close(self) -> None:
        """End the lanes."""
        self._lanes.close()

    def _ask_anything(self, population: Population, *, stimuli: int, rows: int, forecast: bool = True) -> None:
        self.ask(
            population,
            stimulus=np.zeros((stimuli, 2, self._shape.stimulus_width), np.float32),
            row_neuron=np.arange(rows) % population.neurons,
            row_stimulus=np.arange(rows) % stimuli,
            forecast=forecast,
        )

    def _timed(self, lanes: int, *, rows: int) -> float:
        """Seconds of one question on so many lanes: the fastest, which is what nothing disturbed."""
        self._use(Device(lanes=lanes))
        population = self.place(np.zeros((rows, 2, self._shape.neuron_width), np.float32))
        seconds: list[float] = []
        for _ in range(1 + MEASURED_RUNS):  # the first makes tensors
            began = time.perf_counter()
            self._ask_anything(population, stimuli=1, rows=rows)
            seconds.append(time.perf_counter() - began)
            if len(seconds) > 1 and sum(seconds) > MEASURED_S:
                break
        self.close()
        return min(seconds[1:])


def fastest(seconds: dict[int, float]) -> int:
    """The number of threads to take: the smallest that is not slower than the best by `WORTH_A_THREAD`."""
    best = min(seconds.values())
    return min(count for count, took in seconds.items() if took <= best * WORTH_A_THREAD)


def _candidates() -> Iterable[int]:
    """1, 2, 4 ... and as many as the process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return sorted({*(1 << power for power in range(cores.bit_length())), cores})
