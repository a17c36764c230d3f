"""Tensors of fixed addresses, bound to the graph: a frame fills its baseline and level, and nothing is allocated.

A `Population` holds what belongs to the neurons of one session: their vectors, which stay on the device, and the baseline and
level that each frame fills. A `Bucket` belongs to a population and holds what belongs to a question of one size: stimuli, rows
and results. On a GPU all sizes are padded to a `capacity`, so that a few captured graphs serve every question; on the CPU
sizes are exact, and a bucket's rows are cut into parts that fit the cache and that lanes compute side by side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantformer.bundle import Bundle
from quantformer.config import LEVEL_QUANTITIES

#: Populations kept, and buckets of each; of more than these the one that was used longest ago makes way.
MOST_POPULATIONS, MOST_BUCKETS = 8, 32
#: Rows of one run on the CPU times the network's width: with more, what passes between the layers leaves the second-level
#: cache. That is 32 rows at the paper's width of 128.
WIDTH_A_RUN = 4096
#: A lane is not woken for fewer rows than this.
LEAST_ROWS_A_LANE = 4

Run = Callable[[], None]
#: The runtime's sessions that together answer a question with a forecast (True) and without (False).
Sessions = Mapping[bool, Sequence[Any]]
#: The output that a question without a forecast needs, and those that it does not.
PROBABILITY, FORECAST = "logit", ("response", "spread")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Sizes that a bundle fixes: the network's width, frames of baseline and response, and the widths of a neuron's and a
    stimulus' vectors.
    """

    d: int
    baseline_frames: int
    response_frames: int
    neuron_width: int
    stimulus_width: int

    @classmethod
    def of(cls, bundle: Bundle) -> Shape:
        """The sizes of this bundle."""
        vectors, recipe = bundle.vectors, bundle.recipe
        d, features = vectors.unknown.shape[1], vectors.population_tuning.shape[1]
        return cls(
            d=d,
            baseline_frames=recipe.baseline_frames,
            response_frames=recipe.response_frames,
            neuron_width=d + vectors.population_tuning.size,
            stimulus_width=d + features,
        )


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where tensors lie. ``padded``: sizes grow to a `capacity` (on a GPU always); ``lanes``: parts computed at a time."""

    name: str = "cpu"
    padded: bool = False
    lanes: int = 1


def capacity(size: int) -> int:
    """The padded size: a multiple of 16 and of an eighth of the next power of two; beyond 64 at most a quarter is idle."""
    step = max(16, 1 << max(0, (size - 1).bit_length() - 3))
    return -(-size // step) * step


def parts(rows: int, *, lanes: int, most: int) -> list[slice]:
    """Cut ``rows`` into runs of at most ``most``, as many as share out evenly over the lanes; none for no rows."""
    runs = -(-rows // most)
    if rows >= lanes * LEAST_ROWS_A_LANE:
        runs = -(-runs // lanes) * lanes
    edges = [rows * i // runs for i in range(runs + 1)] if runs else []
    return [slice(low, high) for low, high in pairwise(edges)]


class Tensor:
    """An array here, ``host``, and the same on the device. On the CPU both are one memory, and moving costs nothing."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic], *, device: Device) -> None:
        from onnxruntime import OrtValue

        self.host: NDArray[Any] = np.zeros(shape, dtype)
        self._moves = device.name != "cpu"
        self.value = OrtValue.ortvalue_from_numpy(self.host, device.name, 0)

    def part(self, rows: slice) -> Any:
        """The runtime's value of some rows."""
        from onnxruntime import OrtValue

        if rows == slice(0, len(self.host)):
            return self.value
        assert not self._moves, "only memory of the CPU can be cut"
        return OrtValue.ortvalue_from_numpy(self.host[rows])

    def upload(self) -> None:
        """Move ``host`` to the device."""
        if self._moves:
            self.value.update_inplace(self.host)

    def download(self, rows: int) -> NDArray[Any]:
        """A copy of the first ``rows`` of what the device holds."""
        if self._moves:
            moved: NDArray[Any] = self.value.numpy()[:rows]
            return moved
        return self.host[:rows].copy()


@dataclass(frozen=True, kw_only=True)
class Results:
    """What the graph says of ``B`` rows: ``logit`` ``[B]``, ``response`` ``[B, 64]``, ``spread`` ``[B]``, all its own memory;
    the last two None where no forecast was asked for.
    """

    logit: NDArray[np.float32]
    response: NDArray[np.float32] | None
    spread: NDArray[np.float32] | None


class Bucket:
    """Stimuli, rows and results of one size of question, with a ``forecast`` or the probability alone, bound to the sessions
    that compute it beside the population's tensors.
    """

    def __init__(
        self,
        sessions: Sequence[Any],
        population: Population,
        *,
        stimuli: int,
        rows: int,
        forecast: bool,
        shape: Shape,
        graph_id: int,
    ) -> None:
        from onnxruntime import RunOptions

        device = population.device
        self._population = population
        self._stimulus = Tensor((stimuli, 2, shape.stimulus_width), np.float32, device=device)
        self._row_neuron, self._row_stimulus = (Tensor((rows,), np.int64, device=device) for _ in range(2))
        sizes: dict[str, tuple[int, ...]] = {PROBABILITY: (rows,)}
        if forecast:
            sizes |= {"response": (rows, shape.response_frames), "spread": (rows,)}
        self._outputs = {name: Tensor(size, np.float32, device=device) for name, size in sizes.items()}
        self._asked: NDArray[np.float32] | None = None
        self._rows = 0
        self._options = RunOptions()
        if device.name == "cuda":
            self._options.add_run_config_entry("gpu_graph_id", str(graph_id))
        most = max(1, WIDTH_A_RUN // shape.d)
        cut = parts(rows, lanes=device.lanes, most=most) if not device.padded else [slice(0, rows)] if rows else []
        self.runs: Sequence[Run] = [self._bound(session, one) for session in sessions for one in cut]
        #: On a GPU the first call of each run captures it, which must be alone there.
        self.captured = not device.padded

    def capture(self) -> None:
        """Call every run once, one after the other."""
        for run in self.runs:
            run()
        self.captured = True

    def _bound(self, session: Any, rows: slice) -> Run:
        binding = session.io_binding()
        for name, tensor in self._population.inputs.items():
            binding.bind_ortvalue_input(name, tensor.value)
        binding.bind_ortvalue_input("stimulus", self._stimulus.value)
        binding.bind_ortvalue_input("row_neuron", self._row_neuron.part(rows))
        binding.bind_ortvalue_input("row_stimulus", self._row_stimulus.part(rows))
        for output in session.get_outputs():
            binding.bind_ortvalue_output(output.name, self._outputs[output.name].part(rows))
        return lambda: session.run_with_iobinding(binding, self._options)

    def ask(
        self, *, stimulus: NDArray[np.float32], row_neuron: NDArray[np.int64], row_stimulus: NDArray[np.int64]
    ) -> None:
        """Say what the rows ask about; moves nothing where the last question was the same.

        Raises:
            ValueError: a row asks about a neuron or stimulus that is not there.
        """
        before, self._rows = self._rows, len(row_neuron)
        given = (self._row_neuron, row_neuron), (self._row_stimulus, row_stimulus)
        same = self._asked is stimulus and before == self._rows
        if same and all(np.array_equal(tensor.host[: self._rows], rows) for tensor, rows in given):
            return
        for name, rows, there in (
            ("neuron", row_neuron, self._population.neurons),
            ("stimulus", row_stimulus, len(stimulus)),
        ):
            if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < there:
                raise ValueError(f"rows ask about {name} {int(rows.min())} to {int(rows.max())}, there are {there}")
        self._asked = None  # an upload that fails must not look like one that succeeded
        for tensor, array in ((self._stimulus, stimulus), *given):
            tensor.host[: len(array)] = array
            tensor.host[len(array) :] = 0
            tensor.upload()
        self._asked = stimulus

    def results(self) -> Results:
        """The answers to the question last asked, after every one of `runs` was called."""
        found = {name: tensor.download(self._rows) for name, tensor in self._outputs.items()}
        return Results(logit=found[PROBABILITY], response=found.get("response"), spread=found.get("spread"))


class Population:
    """The neurons of one session: ``inputs`` ``baseline``, ``level`` and ``neuron``, for at most ``room`` neurons."""

    def __init__(self, sessions: Sessions, *, room: int, shape: Shape, device: Device, graph_ids: count[int]) -> None:
        self._sessions, self._shape, self._graph_ids = sessions, shape, graph_ids
        self.device, self.room, self.neurons = device, room, 0
        #: A question about it is under way: its tensors may not serve other neurons before that is answered.
        self.busy = False
        self.inputs = {
            "baseline": Tensor((room, shape.baseline_frames), np.float32, device=device),
            "level": Tensor((room, LEVEL_QUANTITIES), np.float32, device=device),
            "neuron": Tensor((room, 2, shape.neuron_width), np.float32, device=device),
        }
        self.vectors: NDArray[np.float32] | None = None
        self._buckets: OrderedDict[tuple[int, int, bool], Bucket] = OrderedDict()

    def settle(self, vectors: NDArray[np.float32]) -> None:
        """Take these neurons' vectors ``(n, 2, width)``; they are moved to the device once."""
        self.vectors = None
        self.neurons = len(vectors)
        self.inputs["neuron"].host[: self.neurons] = vectors
        self.inputs["neuron"].upload()
        self.vectors = vectors

    @property
    def baseline(self) -> NDArray[np.float32]:
        """Where dF/F of a frame's window is written, ``(n, 96)``."""
        return self.inputs["baseline"].host[: self.neurons]

    @property
    def level(self) -> NDArray[np.float32]:
        """Where F0's and the population's level is written, ``(n, LEVEL_QUANTITIES)``."""
        return self.inputs["level"].host[: self.neurons]

    def upload(self) -> None:
        """Move baseline and level to the device."""
        self.inputs["baseline"].upload()
        self.inputs["level"].upload()

    def bucket(self, *, stimuli: int, rows: int, forecast: bool = True) -> Bucket:
        """Tensors for a question about so many stimuli and rows, and whether a forecast is asked for."""
        if self.device.padded:
            stimuli, rows = capacity(stimuli), capacity(rows)
        key = (stimuli, rows, forecast)
        found = self._buckets.get(key)
        if found is None:
            if len(self._buckets) >= MOST_BUCKETS:
                self._buckets.popitem(last=False)
            found = self._buckets[key] = Bucket(
                self._sessions[forecast], self, stimuli=stimuli, rows=rows, forecast=forecast, shape=self._shape,
                graph_id=next(self._graph_ids),
            )  # fmt: skip
        self._buckets.move_to_end(key)
        return found


class Populations:
    """Tensors of the sessions that were asked about most recently; those of one that has gone serve the next one."""

    def __init__(self, sessions: Sessions, *, shape: Shape, device: Device) -> None:
        self._sessions, self._shape, self._device = sessions, shape, device
        # 0 is what the runtime takes where no id is given.
        self._graph_ids = count(1)
        self._kept: list[Population] = []

    def of(self, vectors: NDArray[np.float32]) -> Population:
        """The population of these very vectors ``(n, 2, width)``, with its tensors on the device."""
        found = next((one for one in self._kept if one.vectors is vectors), None)
        if found is None:
            found = self._room_for(vectors)
            found.settle(vectors)
        if self._kept[-1] is not found:
            self._kept.remove(found)
            self._kept.append(found)
        return found

    def _room_for(self, vectors: NDArray[np.float32]) -> Population:
        room = capacity(len(vectors)) if self._device.padded else len(vectors)
        if len(self._kept) >= MOST_POPULATIONS:
            idle = [one for one in self._kept if not one.busy]
            oldest = next((one for one in idle if one.room == room), None)
            if oldest is not None:
                return oldest
            self._kept.remove(idle[0])
        made = Population(self._sessions, room=room, shape=self._shape, device=self._device, graph_ids=self._graph_ids)
        self._kept.append(made)
        return made
