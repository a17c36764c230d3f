"""The engine with its recorder: what is recorded, what survives a kill, and what happens when the disk does not follow."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from engine_process import PATIENCE_S, Client, EngineProcess, wait_until
from recorded_run import GRATINGS, ROIS, busy_run, recorded, trace
from recorder_process import RecorderProcess, list_recordings
from running_service import RunningService, feed, until

from quantformer_cli.benchmark.survival import survival
from quantformer_client import wire
from quantformer_client.wire import ErrorCode
from quantformer_service.recording_file import Ending, Kind, Record, RecordingReader
from quantformer_service.recording_summary import summarize
from quantformer_service.settings import Settings
from quantformer_service.supervisor import Supervisor

TOKEN = "not-to-be-seen-1357"


def records_of(directory: Path) -> list[Record]:
    """All records of the files of one run, in order; none may be damaged, and what two files hold must be the same."""
    found: dict[tuple[int, int], Record] = {}
    for path in list_recordings(directory):
        with RecordingReader(path) as reader:
            for record in reader.records():
                assert reader.header is not None
                if record.kind not in (Kind.START, Kind.END):
                    key = (reader.header.epoch, record.sequence)
                    assert found.setdefault(key, record) == record
    return [found[key] for key in sorted(found)]


def answers(records: list[Record]) -> list[wire.Answer]:
    """The whole ones, of onset questions."""
    bodies = [wire.decode(record.payload).body for record in records if record.kind == Kind.ANSWER]
    return [body for body in bodies if isinstance(body, wire.Answer)]


def test_everything_that_happened_is_in_the_file_and_the_token_is_not(tiny_bundle_path: Path, tmp_path: Path) -> None:
    with recorded(tiny_bundle_path, tmp_path, token=TOKEN) as run:
        busy_run(run.client)
        session = run.client.ask(wire.Describe(), wire.Description)
        heard = run.client.onset(stimuli=GRATINGS)
        assert run.safe().lost == 0
        run.end()
    (path,) = list_recordings(tmp_path)
    assert TOKEN.encode() not in path.read_bytes()
    summary = summarize(path)
    assert (summary.ending, summary.damages, summary.unreadable) == (Ending.CLOSED, [], 0)
    made = summary.made_with
    assert made is not None
    assert (made.epoch, made.bundle, made.provider) == (
        run.engine.facts["epoch"], run.engine.facts["bundle"], run.engine.facts["provider"],
    )  # fmt: skip
    assert "token" not in made.settings
    assert made.packages["onnxruntime"]
    first, second = summary.sessions.values()
    assert (first.subject, first.rois, first.frames, first.ended) == ("mouse", 12, 100 + 7 + 30 + 20 + 130, "closed")
    # Frames 100 to 103 were not there, and 102 came later.
    assert (first.gaps, first.missing_frames) == (1, 3)
    assert first.inputs["set_rule"] == 3
    assert first.failed["window_not_ready"] == 1
    assert first.decisions["fired"] > 0
    assert first.decisions["disarmed"] > 0
    assert first.decisions["stopped"] > 0
    assert summary.refused == {"duplicate_frame": 1, "wrong_neuron_count": 1}
    assert (second.frames, second.rate_hz, second.ended) == (session.counters["frames"], 50.0, "the engine stops")
    assert second.dropped == 0 or session.counters["standing_dropped"] >= second.dropped
    # Every onset question was answered but the one that the acquisition's end took.
    assert summary.records["answer"] == first.inputs["onset"] + second.inputs["onset"] - 1
    assert summary.records["standing_answer"] >= 2
    found = answers(records_of(tmp_path))[-1]
    assert found.question == heard.question
    assert found.response is not None
    assert heard.response is not None
    assert found.response.tobytes() == heard.response.tobytes()
    assert (found.published_ns, found.flags) == (heard.published_ns, heard.flags)


def test_nothing_is_recorded_before_it_is_asked_for(tiny_bundle_path: Path) -> None:
    with_recorder = Supervisor(Settings(bundle=str(tiny_bundle_path), record="somewhere"), on_ready=lambda _: None)
    without = Supervisor(Settings(bundle=str(tiny_bundle_path)), on_ready=lambda _: None)
    names = [[child.program.name for child in one._children] for one in (with_recorder, without)]
    assert names == [["engine", "gateway", "recorder"], ["engine", "gateway"]]


# --- trouble ----------------------------------------------------------------------------------------------------------


class Watcher:
    """Hears what the engine publishes."""

    def __init__(self, engine: EngineProcess) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.SUB)
        self._socket.setsockopt(zmq.RCVTIMEO, int(PATIENCE_S * 1000))
        for kind in (wire.MessageType.TRIGGER, wire.MessageType.STATUS):
            self._socket.subscribe(wire.subscription(kind))
        self._socket.connect(engine.endpoints["pub"])

    def until(self, check: Callable[[wire.Message], bool]) -> wire.Message:
        """The next message that is so."""
        while True:
            message = wire.decode(self._socket.recv())
            if check(message):
                return message

    def close(self) -> None:
        self._socket.close(0)
        self._context.destroy(0)


def armed(client: Client, watcher: Watcher) -> None:
    """Arm, and be sure that the watcher hears of it."""

    def heard() -> bool:
        client.ask(wire.Arm(lease_s=60.0), wire.Trigger)
        return bool(watcher._socket.poll(50))

    wait_until(heard)
    watcher.until(lambda one: isinstance(one.body, wire.Trigger) and one.body.state == "armed")


def check_trouble(client: Client, watcher: Watcher, *, says: str) -> None:
    """The engine has told of trouble: it disarms, refuses ARM, and serves frames and answers."""

    def told(message: wire.Message) -> bool:
        body = message.body
        return isinstance(body, wire.Status) and body.recording is not None and says in body.recording.trouble

    disarmed = watcher.until(lambda one: isinstance(one.body, wire.Trigger) and one.body.reason == "recorder")
    assert (disarmed.header.session, disarmed.body.state) == (client.session, "disarmed")  # type: ignore[union-attr]
    watcher.until(told)
    state = client.ask(wire.GetTrigger(), wire.Trigger)
    assert (state.state, state.reason) == ("disarmed", "recorder")
    refused = client.error(wire.Arm())
    assert refused.code == ErrorCode.NOT_RECORDING
    assert says in refused.message
    last = client.ask(wire.Describe(), wire.Description).last_frame
    client.frames(trace(20, seed=3), start=last + 1)
    assert client.onset(stimuli=GRATINGS).last_frame == last + 20


def check_recovery(client: Client, watcher: Watcher) -> None:
    """It is told that all is well, and what was disarmed stays so until somebody arms."""
    watcher.until(
        lambda one: (
            isinstance(one.body, wire.Status) and one.body.recording is not None and not one.body.recording.trouble
        )
    )
    assert client.ask(wire.GetTrigger(), wire.Trigger).state == "disarmed"
    assert client.ask(wire.Arm(), wire.Trigger).state == "armed"


def test_a_stalled_recorder_disarms_frames_go_on_and_nothing_is_lost(tiny_bundle_path: Path, tmp_path: Path) -> None:
    with recorded(tiny_bundle_path, tmp_path, record_stall_s=0.5, record_sync_s=0.1) as run:
        watcher = Watcher(run.engine)
        run.client.open(ROIS)
        run.client.frames(trace(100))
        armed(run.client, watcher)
        run.recorder.stall()
        check_trouble(run.client, watcher, says="for more than 0.5 s")
        run.recorder.go_on()
        check_recovery(run.client, watcher)
        assert run.safe().lost == 0
        watcher.close()
        run.end()
    (path,) = list_recordings(tmp_path)
    summary = summarize(path)
    assert (summary.ending, summary.damages, summary.lost) == (Ending.CLOSED, [], 0)
    assert next(iter(summary.sessions.values())).frames == 120


def test_a_recorder_that_is_killed_disarms_and_its_successor_gets_everything(
    tiny_bundle_path: Path, tmp_path: Path
) -> None:
    with recorded(tiny_bundle_path, tmp_path) as run:
        watcher = Watcher(run.engine)
        run.client.open(ROIS)
        run.client.frames(trace(100))
        armed(run.client, watcher)
        port = int(run.engine.endpoints["zmq"].rsplit(":", 1)[1])
        run.recorder.kill()
        run.client.frames(trace(1), start=100)
        check_trouble(run.client, watcher, says="recorder")
        run.recorder = RecorderProcess(tmp_path, zmq_port=port)
        check_recovery(run.client, watcher)
        assert run.safe().lost == 0
        watcher.close()
        run.end()
    records = records_of(tmp_path)
    assert [record.sequence for record in records] == list(range(1, len(records) + 1))
    assert len(answers(records)) == 1


def test_a_full_disk_disarms_frames_go_on_and_it_recovers(tiny_bundle_path: Path, small_disk: Path) -> None:
    with recorded(tiny_bundle_path, small_disk, record_sync_s=0.05) as run:
        watcher = Watcher(run.engine)
        run.client.open(ROIS)
        run.client.frames(trace(100))
        armed(run.client, watcher)
        run.safe()
        filler = small_disk / "filler"
        with filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    break
        for _ in range(40):
            run.client.onset(stimuli=GRATINGS)
        check_trouble(run.client, watcher, says="No space left on device")
        filler.unlink()
        check_recovery(run.client, watcher)
        assert run.safe().lost == 0
        watcher.close()
        run.end()
        records = records_of(small_disk)
        assert [record.sequence for record in records] == list(range(1, len(records) + 1))
        assert len(answers(records)) == 41


# --- kills ------------------------------------------------------------------------------------------------------------


class Stream:
    """Sends frames and questions to whatever engine is there, until it is ended."""

    def __init__(self, run: KilledRun) -> None:
        self._run, self._stop = run, threading.Event()
        self._thread = threading.Thread(target=self._send)
        self._thread.start()

    def end(self) -> None:
        self._stop.set()
        self._thread.join(PATIENCE_S)

    def _send(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        while not self._stop.is_set():
            client = Client(self._run.engine.endpoints["zmq"], context)
            client.socket.setsockopt(zmq.RCVTIMEO, 1000)
            try:
                self._talk(client)
            except (zmq.Again, AssertionError):  # it was killed
                pass
            finally:
                client.close()
        context.destroy(0)

    def _talk(self, client: Client) -> None:
        client.open(ROIS)
        client.ask(wire.Standing(stimuli=GRATINGS), wire.Accepted)
        values, number = trace(512), 0
        while not self._stop.is_set():
            client.send(wire.Frame(number=number, device_s=number / 30.0, fluorescence=values[number % 512]))
            number += 1
            if number > 100 and number % 10 == 0:
                client.onset(stimuli=GRATINGS)
            recording = client.ask(wire.GetStatus(), wire.Status).recording
            assert recording is not None
            self._run.acknowledged[self._run.engine.facts["epoch"]] = recording.acknowledged
            time.sleep(0.001)


class KilledRun:
    """An engine and a recorder that are killed and come back, on the same ports."""

    def __init__(self, bundle: Path, directory: Path) -> None:
        self._bundle, self._directory = bundle, directory
        self.acknowledged: dict[int, int] = {}
        self._settings: dict[str, object] = {"record": directory, "record_sync_s": 0.05}
        self.engine = EngineProcess(bundle, **self._settings)
        names = {"zmq": "zmq_port", "pub": "pub_port", "tcp": "tcp_port"}
        self._settings |= {names[name]: endpoint.rsplit(":", 1)[1] for name, endpoint in self.engine.endpoints.items()}
        self.recorder = self._new_recorder()

    def _new_recorder(self) -> RecorderProcess:
        made = RecorderProcess(self._directory, zmq_port=int(str(self._settings["zmq_port"])), record_sync_s=0.05)
        assert made.facts.get("ready"), made.facts
        return made

    def kill_engine(self) -> None:
        self.engine.kill()
        self.engine = EngineProcess(self._bundle, **self._settings)
        assert self.engine.facts.get("ready"), self.engine.facts

    def kill_recorder(self) -> None:
        self.recorder.kill()
        self.recorder = self._new_recorder()

    def close(self) -> None:
        self.engine.kill()
        self.recorder.kill()


def kill_again_and_again(bundle: Path, directory: Path, *, times: int, seed: int) -> None:
    """Kill the engine or the recorder at random moments of a stream; then judge every file."""
    chance = random.Random(seed)
    run = KilledRun(bundle, directory)
    stream = Stream(run)
    try:
        for _ in range(times):
            time.sleep(chance.uniform(0.0, 0.8))
            run.kill_engine() if chance.random() < 0.5 else run.kill_recorder()
        wait_until(lambda: run.acknowledged.get(run.engine.facts["epoch"], 0) > 0)
    finally:
        stream.end()
        run.close()
    check_files(directory, run.acknowledged)


def check_files(directory: Path, acknowledged: dict[int, int]) -> None:
    """Every file is whole but for a torn tail, and every record that was acknowledged is there."""
    found = survival(directory, acknowledged)
    assert acknowledged
    assert found.damages == []
    assert found.missing == {}
    assert found.acknowledged <= found.records


def test_what_was_acknowledged_survives_kills_at_random_moments(tiny_bundle_path: Path, tmp_path: Path) -> None:
    kill_again_and_again(tiny_bundle_path, tmp_path, times=4, seed=1)


@pytest.mark.slow
def test_what_was_acknowledged_survives_two_hundred_kills(tiny_bundle_path: Path, tmp_path: Path) -> None:
    kill_again_and_again(tiny_bundle_path, tmp_path, times=200, seed=2)


def has_kept(status: dict[str, Any], *, frames: int) -> bool:
    """Whether so many frames came, and the recording is well and waits for nothing of them."""
    one = status.get("recording")
    came = status["counters"].get("frames", 0) == frames
    return came and bool(one) and not one["trouble"] and not one["waiting_bytes"] and not one["lost"]


def test_in_the_service_a_killed_recorder_comes_back_and_a_killed_engine_leaves_its_file_whole(
    tiny_bundle_path: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # Its path is short: a local socket lies in it.
    directory = tmp_path_factory.mktemp("recordings")
    with RunningService(tiny_bundle_path, folder=tmp_path, record=directory) as service:
        scope = service.microscope()
        with scope.connection:
            feed(scope, 100)
            before = service.child("recorder")
            before.kill()
            feed(scope, 100, first=100)
            until(lambda: service.child("recorder").pid != before.pid)
            with service.rest() as rest:
                # What is not acknowledged yet may go with the engine.
                until(lambda: has_kept(rest.status(), frames=200))
                epoch = rest.status()["epoch"]
                service.child("engine").kill()
                until(lambda: rest.ready()["ready"] and rest.status().get("epoch", epoch) != epoch)
                until(lambda: (one := rest.status().get("recording")) and not one["trouble"])
        assert service.end() == 143
    epochs: dict[int, list[Path]] = {}
    for path in list_recordings(directory):
        with RecordingReader(path) as reader:
            assert not reader.survey().damages
            assert reader.header is not None
            epochs.setdefault(reader.header.epoch, []).append(path)
    assert len(epochs) == 2
    frames = [
        wire.decode(record.payload).header.frame
        for record in records_of(directory)
        if record.kind == Kind.INPUT and wire.peek(record.payload).type == wire.MessageType.FRAME
    ]
    assert frames == list(range(200))
