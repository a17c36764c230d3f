"""An engine and its recorder as real processes, and a run through everything that is recorded."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zmq
from engine_process import Client, EngineProcess, free_ports, wait_until
from numpy.typing import NDArray
from recorder_process import RecorderProcess
from tiny_bundle import NEURONS

from quantformer_client import wire

ROIS = list(NEURONS)
GRATINGS = [wire.Stimulus(stimulus_id="dir=045"), wire.Stimulus(stimulus_id="dir=180")]


@dataclass(kw_only=True, eq=False)
class Recorded:
    """A running pair, and a client of the engine."""

    directory: Path
    engine: EngineProcess
    recorder: RecorderProcess
    client: Client

    @property
    def recording(self) -> wire.Recording:
        """The recording in STATUS."""
        recording = self.client.ask(wire.GetStatus(), wire.Status).recording
        assert recording is not None
        return recording

    def safe(self) -> wire.Recording:
        """Wait until all that was recorded until now is on the disk, without trouble."""
        asked = self.recording.records
        found: list[wire.Recording] = []

        def there() -> bool:
            found.append(self.recording)
            return found[-1].acknowledged >= asked and not found[-1].trouble

        wait_until(there)
        return found[-1]

    def end(self) -> None:
        """The engine, then the recorder, as the supervisor does it."""
        assert self.engine.end() == 0
        assert self.recorder.end() == 0


@contextlib.contextmanager
def recorded(bundle: Path, directory: Path, *, token: str = "", **settings: object) -> Iterator[Recorded]:
    """A recorder and an engine for the time of a block, and a client that has said HELLO."""
    ports = dict(zip(("zmq_port", "pub_port", "tcp_port"), free_ports(3), strict=True))
    common = {"record": directory, "token": token, **settings}
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    started = [RecorderProcess(directory, **{**common, "zmq_port": ports["zmq_port"]})]  # type: ignore[arg-type]
    engine = EngineProcess(bundle, **{**common, **ports})
    try:
        assert started[0].facts.get("ready"), started[0].facts
        assert engine.facts.get("ready"), engine.facts
        client = Client(engine.endpoints["zmq"], context)
        client.ask(wire.Hello(token=token), wire.Welcome)
        made = Recorded(directory=directory, engine=engine, recorder=started[0], client=client)
        wait_until(lambda: not made.recording.trouble)
        yield made
        started.append(made.recorder)
    finally:
        context.destroy(0)
        engine.kill()
        for recorder in started:
            recorder.kill()


def trace(frames: int, *, seed: int = 0) -> NDArray[np.float32]:
    """Fluorescence ``(frames, rois)``."""
    return np.random.default_rng(seed).lognormal(5, 0.2, (frames, len(ROIS))).astype(np.float32)


def busy_run(client: Client) -> None:
    """Two sessions through everything that changes what is answered or decided."""
    client.open(ROIS)
    rules = [
        wire.Rule(rule="eager", rois=ROIS[:5], threshold=0.0, refractory_s=0.0, max_age_s=1e6),
        wire.Rule(rule="choosy", rois=ROIS[2:9], at_least=3, threshold=0.52, refractory_s=0.1, max_age_s=1e6),
        wire.Rule(rule="onsets", rois=ROIS[:2], threshold=0.4, asked="onset", stimulus="dir=180", max_age_s=1e6),
    ]
    for rule in rules:
        client.ask(wire.SetRule(rule=rule), wire.Accepted)
    standing = client.ask(wire.Standing(stimuli=GRATINGS), wire.Accepted).question
    lease = client.ask(wire.Arm(lease_s=60.0), wire.Trigger).lease
    values = trace(400)
    values[70, 3] = np.nan
    client.frames(values[:100])
    client.onset(stimuli=GRATINGS)
    # A gap that is partly filled afterwards, a duplicate, a frame of another size.
    client.frames(values[104:110], start=104)
    client.frames(values[102:103], start=102)
    client.error(wire.Frame(number=105, device_s=3.5, fluorescence=values[105]))
    client.error(wire.Frame(number=111, device_s=3.7, fluorescence=values[111][:3]))
    client.ask(wire.Heartbeat(lease=lease), wire.Trigger)
    announced = client.send(
        wire.Onset(stimuli=GRATINGS, onset_s=4.2, display_latency_s=0.01, source="photodiode", baseline=True)
    )
    late = client.send(wire.Onset(stimuli=GRATINGS[:1], onset_frame=200, within_s=0.05))
    for number in range(110, 140):
        client.frames(values[number : number + 1], start=number)
    for request in (announced, late):
        assert isinstance(client.receive(request, skip=wire.Accepted).body, wire.Answer)
    client.ask(wire.Stimulation(rois=ROIS[:2], first_frame=138, last_frame=141), wire.Accepted)
    client.onset(stimuli=GRATINGS, rois=[ROIS[4], ROIS[0]])
    client.ask(wire.Disarm(), wire.Trigger)
    client.ask(wire.RemoveRule(rule="choosy"), wire.Accepted)
    client.frames(values[140:160], start=140)
    client.onset(stimuli=GRATINGS[1:], hypothetical=True)
    client.ask(wire.Stop(), wire.Accepted)
    client.onset(stimuli=GRATINGS)
    client.ask(wire.Disarm(), wire.Trigger)
    # Pending when the acquisition ends, and one after it began anew.
    lost = client.send(wire.Onset(stimuli=GRATINGS, onset_frame=300))
    client.receive(lost)
    client.ask(wire.Acquisition(event="abort"), wire.Accepted)
    assert isinstance(client.receive(lost).body, wire.Error)
    client.ask(wire.Acquisition(event="start"), wire.Accepted)
    client.ask(wire.Arm(lease_s=0.05), wire.Trigger)
    client.frames(values[:130])
    client.onset(stimuli=GRATINGS)
    wait_until(lambda: client.ask(wire.GetTrigger(), wire.Trigger).state == "disarmed")
    client.onset(stimuli=GRATINGS)
    client.ask(wire.ClearStanding(question=standing), wire.Accepted)
    client.ask(wire.Close(), wire.Closed)
    # Another rate is interpolated; neuropil is subtracted.
    signal = wire.SignalDeclaration(corrected=False, neuropil_factor=0.6, offset=3.0, stamp="middle")
    client.open(ROIS, rate_hz=50.0, signal=signal)
    rng = np.random.default_rng(8)
    stamps = np.cumsum(rng.normal(0.02, 1e-4, 260))
    for number in range(260):
        frame = wire.Frame(
            number=number,
            device_s=float(stamps[number]),
            fluorescence=values[number] + 100,
            neuropil=trace(260, seed=4)[number] * 0.2,
        )
        client.send(frame)
    client.ask(wire.Standing(stimuli=GRATINGS[:1], detail="probability", rois=ROIS[3:6]), wire.Accepted)
    client.onset(stimuli=GRATINGS, onset_s=float(stamps[250]))
    client.onset(stimuli=GRATINGS)
