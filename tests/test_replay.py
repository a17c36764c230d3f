"""A recording asked again agrees with itself; one that was tampered with, or another bundle, does not."""

from __future__ import annotations

import dataclasses
import json
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
from engine_process import wait_until
from recorded_run import GRATINGS, ROIS, busy_run, recorded, trace
from recorder_process import RecorderProcess, list_recordings
from running_service import command
from tiny_bundle import write_tiny_bundle

from quantformer.bundle import load_bundle
from quantformer.errors import BundleError, RecordingError
from quantformer_client import wire
from quantformer_service.answer_comparison import compare_answers
from quantformer_service.recorded_answer import restore
from quantformer_service.recording_file import Kind, Record, RecordingReader
from quantformer_service.recording_writer import RecordingWriter
from quantformer_service.replay import Replayed, replay

Change = Callable[[Record], Record | None]


@pytest.fixture(scope="module")
def streamed(tiny_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording of a busy run."""
    directory = tmp_path_factory.mktemp("run")
    with recorded(tiny_bundle_path, directory) as run:
        busy_run(run.client)
        run.safe()
        run.end()
    (path,) = list_recordings(directory)
    return path


def changed(path: Path, folder: Path, change: Change) -> Path:
    """A copy with every record passed through ``change`` (None: left out), its checksums and numbers right."""
    with RecordingReader(path) as reader:
        assert reader.header is not None
        writer = RecordingWriter(folder, header=reader.header)
        sequence = 0
        for record in reader.records():
            new = change(record)
            if new is not None and new.kind != Kind.END:
                sequence += new.kind != Kind.START
                writer.append(dataclasses.replace(new, sequence=sequence))
    writer.close()
    return writer.path


def once(check: Callable[[Record], bool], change: Change) -> Change:
    """Change the first record that is so."""
    done: list[bool] = []

    def apply(record: Record) -> Record | None:
        if not done and check(record):
            done.append(True)
            return change(record)
        return record

    return apply


def again(path: Path, bundle: Path) -> Replayed:
    (outcome,) = replay([path], load_bundle(bundle))
    return outcome


def is_input(kind: wire.MessageType, *, frame: int | None = None) -> Callable[[Record], bool]:
    def check(record: Record) -> bool:
        if record.kind != Kind.INPUT:
            return False
        head = wire.peek(record.payload)
        return head.type == kind and frame in (None, head.frame)

    return check


def test_a_replay_agrees_in_every_answer_and_decision(streamed: Path, tiny_bundle_path: Path) -> None:
    outcome = again(streamed, tiny_bundle_path)
    assert outcome.differences == ()
    assert outcome.agrees
    assert (outcome.unlike, outcome.lost, outcome.sessions, outcome.torn) == ((), 0, 2, False)
    with RecordingReader(streamed) as reader:
        records = list(reader.records())
    answers = sum(record.kind in (Kind.ANSWER, Kind.STANDING_ANSWER) for record in records)
    decisions = sum(
        record.kind == Kind.OUTPUT and wire.peek(record.payload).type == wire.MessageType.DECISION for record in records
    )
    assert (outcome.answers.equal, outcome.decisions.equal) == (answers, decisions)
    assert answers > 12
    assert decisions > 20


def test_the_command_says_so_and_a_wrong_bundle_is_refused_by_its_hash(
    streamed: Path, tiny_bundle_path: Path, tmp_path: Path
) -> None:
    done = command("replay", str(streamed), "--bundle", str(tiny_bundle_path), "--json")
    assert done.returncode == 0, done.stderr
    (told,) = json.loads(done.stdout)
    assert told["agrees"]
    assert (told["unlike"], told["answers"]["different"]) == ([], 0)
    other = write_tiny_bundle(tmp_path / "other", seed=1)
    wrong = command("replay", str(streamed), "--bundle", str(tmp_path / "other"))
    assert wrong.returncode == 3
    assert other.hash in wrong.stderr
    assert load_bundle(tiny_bundle_path).hash in wrong.stderr
    assert command("replay", str(streamed)).returncode == 2


def of_version_1(record: Record) -> Record:
    """A record as the recorder of wire version 1.1 wrote it, whose ANSWERs told both ends of every ROI's interval."""
    if record.kind == Kind.START:
        facts = json.loads(record.payload)
        return dataclasses.replace(record, payload=json.dumps(facts | {"wire": "1.1"}).encode())
    if record.kind not in (Kind.INPUT, Kind.OUTPUT, Kind.ANSWER, Kind.STANDING_ANSWER):
        return record
    # Of a standing question's answer the forecast was cut out: its checksum and its length stand before the message.
    standing = record.kind == Kind.STANDING_ANSWER
    at = 8 if standing else 0
    made = bytearray(record.payload)
    header_bytes, count = struct.unpack_from("<H", made, at + 16)[0], struct.unpack_from("<I", made, at + 72)[0]
    if standing or wire.peek(record.payload).type == wire.MessageType.ANSWER:
        lineage_bytes, stimuli, steps = struct.unpack_from("<HHH", made, at + header_bytes)
        sizes = {"rois": count, "stimuli": stimuli, "response_frames": steps}
        now, then = wire.forecast_bytes(**sizes), wire.forecast_bytes(**sizes, major=1)
        (announced,) = struct.unpack_from("<I", made, at + 76)
        struct.pack_into("<I", made, at + 76, announced - now + then)
        if standing:
            struct.pack_into("<I", made, 4, then)
        else:
            answer = wire.decode(record.payload).body
            assert isinstance(answer, wire.Answer)
            arrays = (answer.response, answer.low, answer.high)
            start = header_bytes + lineage_bytes + 5 * count + -count % 4 + 4 * stimuli * count
            made[start : start + now] = b"".join(one.tobytes() for one in arrays if one is not None)
    made[at + 4], made[at + 18] = 1, 1
    return dataclasses.replace(record, payload=bytes(made))


def test_a_recording_of_wire_version_1_is_read_and_its_replay_left_to_its_own_quantformer(
    streamed: Path, tiny_bundle_path: Path, tmp_path: Path
) -> None:
    old = changed(streamed, tmp_path, of_version_1)
    with RecordingReader(old) as reader:
        assert {record.payload[4] for record in reader.records() if record.kind in (Kind.INPUT, Kind.ANSWER)} == {1}
    assert command("recording", "verify", str(old)).returncode == 0
    then, now = (json.loads(command("recording", "info", str(one), "--json").stdout) for one in (old, streamed))
    assert then["unreadable"] == now["unreadable"] == 0
    assert then["sessions"] == now["sessions"]
    done = command("replay", str(old), "--bundle", str(tiny_bundle_path))
    assert done.returncode == 3
    assert "was recorded over wire version 1.1" in done.stderr
    assert "quantformer 0.1.0, wire 1.1, cpu" in command("recording", "info", str(old)).stdout


def test_verify_and_info_tell_of_a_recording(streamed: Path, tmp_path: Path) -> None:
    done = command("recording", "verify", str(streamed))
    assert (done.returncode, "whole" in done.stdout, "closed" in done.stdout) == (0, True, True)
    shown = command("recording", "info", str(streamed))
    assert shown.returncode == 0, shown.stderr
    for part in ("mouse, 12 ROIs at 30 Hz, closed", "287, 1 gaps, 3 never came", "duplicate_frame 1", "fired"):
        assert part in shown.stdout
    facts = json.loads(command("recording", "info", str(streamed), "--json").stdout)
    assert facts["ending"] == "closed"
    assert [one["frames"] for one in facts["sessions"].values()] == [287, 260]
    data = bytearray(streamed.read_bytes())
    torn, damaged = tmp_path / "torn.qfrec", tmp_path / "damaged.qfrec"
    torn.write_bytes(data[:-70])
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert "torn tail of" in command("recording", "verify", str(torn)).stdout
    found = command("recording", "verify", str(torn), str(damaged))
    assert found.returncode == 3
    assert "DAMAGED in 1 places" in found.stdout
    assert json.loads(command("recording", "verify", str(damaged), "--json").stdout)["damages"]
    assert command("recording", "info", str(damaged)).returncode == 3
    assert command("replay", str(damaged), "--bundle", ".").returncode == 3


def test_sessions_that_share_batches_are_asked_again_bit_for_bit(tiny_bundle_path: Path, tmp_path: Path) -> None:
    with recorded(tiny_bundle_path, tmp_path) as run:
        client, sessions = run.client, []
        for seed in range(3):
            client.open(ROIS)
            sessions.append(client.session)
            client.frames(trace(100, seed=seed))
            client.ask(wire.Standing(stimuli=GRATINGS[: 1 + seed % 2]), wire.Accepted)
        for number in range(100, 140):
            # Frames of all come while this is computed; then their questions are there together.
            asked = [client.send(wire.Onset(stimuli=GRATINGS * 60, detail="probability"), session=sessions[number % 3])]
            for seed, session in enumerate(sessions):
                values = trace(140, seed=seed)[number]
                client.send(wire.Frame(number=number, device_s=number / 30, fluorescence=values), session=session)
                asked.append(client.send(wire.Onset(stimuli=GRATINGS[seed % 2 :], rois=ROIS[seed:]), session=session))
            for request in asked:
                assert isinstance(client.receive(request, skip=wire.Accepted).body, wire.Answer)
        run.safe()
        run.end()
    (path,) = list_recordings(tmp_path)
    outcome = again(path, tiny_bundle_path)
    assert outcome.differences == ()
    assert (outcome.unlike, outcome.sessions, outcome.agrees) == ((), 3, True)
    together: dict[int, set[int]] = {}
    answers = 0
    with RecordingReader(path) as reader:
        for record in reader.records():
            if record.kind in (Kind.ANSWER, Kind.STANDING_ANSWER):
                answers += 1
            if record.kind == Kind.STANDING_ANSWER:
                submitted_ns = restore(record.payload).answer.submitted_ns
                together.setdefault(submitted_ns, set()).add(record.session)
    assert outcome.answers.equal == answers >= 160
    # All three were asked at once at least once.
    assert max(map(len, together.values())) == 3


# --- tampering --------------------------------------------------------------------------------------------------------


def one_bit_of_a_frame(record: Record) -> Record:
    payload = bytearray(record.payload)
    payload[wire.HEADER_BYTES + 4 * 4 + 1] ^= 64
    return dataclasses.replace(record, payload=bytes(payload))


def one_bit_of_an_answer(record: Record) -> Record:
    """The last bit of the least probability, which decides nothing."""
    answer = wire.decode(record.payload).body
    assert isinstance(answer, wire.Answer)
    probability = answer.probability.copy()
    probability.view(np.uint32)[0, np.nanargmin(probability[0])] ^= 1
    head = wire.peek(record.payload)
    changed = msgspec.structs.replace(answer, probability=probability)
    return dataclasses.replace(record, payload=changed.encode(session=head.session, epoch=head.epoch))


def another_checksum(record: Record) -> Record:
    (crc,) = struct.unpack_from("<I", record.payload)
    return dataclasses.replace(record, payload=struct.pack("<I", crc ^ 1) + record.payload[4:])


def fired(record: Record) -> Record:
    message = wire.decode(record.payload)
    assert isinstance(message.body, wire.Decision)
    body = msgspec.structs.replace(message.body, fired=True, reason="fired")
    return dataclasses.replace(record, payload=wire.encode(body, session=message.header.session))


def is_decision(record: Record) -> bool:
    if record.kind != Kind.OUTPUT:
        return False
    body = wire.decode(record.payload).body
    return isinstance(body, wire.Decision) and not body.fired


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (once(is_input(wire.MessageType.FRAME, frame=60), one_bit_of_a_frame), "answer to question"),
        (once(is_input(wire.MessageType.FRAME, frame=60), lambda _: None), "answer to question"),
        (once(lambda one: one.kind == Kind.ANSWER, one_bit_of_an_answer), "probability is off by up to"),
        (once(lambda one: one.kind == Kind.STANDING_ANSWER, another_checksum), "the forecast's checksum"),
        (once(is_decision, fired), "fired is False, recorded True"),
        (once(is_input(wire.MessageType.ARM), lambda _: None), "decision of rule"),
        (once(is_input(wire.MessageType.SET_RULE), lambda _: None), "decision of rule"),
        (once(is_input(wire.MessageType.STIMULATION), lambda _: None), "held is 3, recorded 5"),
    ],
    ids=["frame", "no-frame", "answer", "standing-answer", "decision", "no-arm", "no-rule", "no-stimulation"],
)
def test_whatever_was_tampered_with_comes_out_otherwise(
    streamed: Path, tiny_bundle_path: Path, tmp_path: Path, change: Change, says: str
) -> None:
    path = changed(streamed, tmp_path, change)
    outcome = again(path, tiny_bundle_path)
    assert not outcome.agrees
    assert any(says in one for one in outcome.differences), outcome.differences
    if "probability" in says:
        done = command("replay", str(path), "--bundle", str(tiny_bundle_path))
        assert (done.returncode, "NOT all agree" in done.stdout, "bit for bit" in done.stdout) == (1, True, True)


def test_a_copy_that_is_not_changed_agrees(streamed: Path, tiny_bundle_path: Path, tmp_path: Path) -> None:
    assert again(changed(streamed, tmp_path, lambda record: record), tiny_bundle_path).agrees


# --- another machine, and parts of a run ------------------------------------------------------------------------------


def another_processor(record: Record) -> Record:
    if record.kind != Kind.START:
        return record
    facts = json.loads(record.payload)
    return dataclasses.replace(record, payload=json.dumps(facts | {"processor": "abacus"}).encode())


def test_on_another_machine_answers_agree_within_the_tolerance(
    streamed: Path, tiny_bundle_path: Path, tmp_path: Path
) -> None:
    moved = changed(streamed, tmp_path, another_processor)
    outcome = again(moved, tiny_bundle_path)
    assert outcome.agrees
    assert len(outcome.unlike) == 1
    assert "abacus, here" in outcome.unlike[0]
    nudged = changed(moved, tmp_path, once(lambda one: one.kind == Kind.ANSWER, one_bit_of_an_answer))
    outcome = again(nudged, tiny_bundle_path)
    assert outcome.agrees
    assert (outcome.answers.within, outcome.answers.different) == (1, 0)


def test_floats_are_compared_by_the_rule_and_everything_else_exactly(streamed: Path) -> None:
    with RecordingReader(streamed) as reader:
        answer = next(wire.decode(one.payload).body for one in reader.records() if one.kind == Kind.ANSWER)
    assert isinstance(answer, wire.Answer)
    assert answer.response is not None

    def verdict(*, exact: bool, **changes: object) -> str:
        return compare_answers(answer, msgspec.structs.replace(answer, **changes), checksum=None, exact=exact)[0]  # type: ignore[arg-type]

    near, far = answer.response + np.float32(9e-5), answer.response + np.float32(2e-4)
    holed = answer.response.copy()
    holed[0, 0, 0] = np.nan
    assert verdict(exact=True) == "equal"
    assert [verdict(exact=exact, response=near) for exact in (False, True)] == ["within", "different"]
    assert verdict(exact=False, response=far) == "different"
    assert verdict(exact=False, response=holed) == "different"
    assert verdict(exact=False, last_frame=answer.last_frame + 1) == "different"
    assert verdict(exact=False, flags=wire.Flags.LATE ^ answer.flags) == "different"
    assert verdict(exact=False, response=answer.response[:, :, :-1]) == "different"
    assert verdict(exact=True, published_ns=1, done_ns=2) == "equal"


def test_the_parts_of_a_run_agree_together_and_a_part_alone_says_what_it_lacks(
    tiny_bundle_path: Path, tmp_path: Path
) -> None:
    with recorded(tiny_bundle_path, tmp_path) as run:
        run.client.open(ROIS)
        run.client.ask(wire.Standing(stimuli=GRATINGS), wire.Accepted)
        run.client.frames(trace(120))
        run.client.onset(stimuli=GRATINGS)
        port = int(run.engine.endpoints["zmq"].rsplit(":", 1)[1])
        run.safe()
        run.recorder.kill()
        run.client.frames(trace(20, seed=1), start=120)
        run.recorder = RecorderProcess(tmp_path, zmq_port=port)
        wait_until(lambda: not run.recording.trouble)
        run.client.onset(stimuli=GRATINGS)
        run.safe()
        run.end()
    paths = list_recordings(tmp_path)
    assert len(paths) == 2
    bundle = load_bundle(tiny_bundle_path)
    (together,) = replay(paths[::-1], bundle)
    assert together.agrees
    assert together.frames == 140
    (alone,) = replay(paths[1:], bundle)
    assert not alone.agrees
    assert alone.answers.different == 0
    assert alone.answers.not_asked["its session is not known from here on"] >= 1


def test_lost_records_end_what_can_be_asked_again_of_the_sessions_of_then(
    streamed: Path, tiny_bundle_path: Path, tmp_path: Path
) -> None:
    lost = Record(kind=Kind.LOST, sequence=0, stamp_ns=0, id=17)
    path = changed(streamed, tmp_path, once(is_input(wire.MessageType.FRAME, frame=50), lambda _: lost))
    outcome = again(path, tiny_bundle_path)
    assert outcome.lost == 17
    assert outcome.answers.different == 0
    # The second session began after that.
    assert outcome.answers.equal >= 2
    assert sum(outcome.answers.not_asked.values()) >= 5
    assert not outcome.agrees


def test_what_is_no_recording_is_refused(tiny_bundle_path: Path, streamed: Path, tmp_path: Path) -> None:
    bundle = load_bundle(tiny_bundle_path)
    empty = tmp_path / "empty.qfrec"
    empty.write_bytes(b"")
    with pytest.raises(RecordingError, match="nothing to replay"):
        replay([empty], bundle)
    unsaid = changed(
        streamed, tmp_path, lambda one: dataclasses.replace(one, payload=b"[]") if one.kind == Kind.START else one
    )
    with pytest.raises(RecordingError, match="does not say what it was made with"):
        replay([unsaid], bundle)
    nonsense = changed(
        streamed,
        tmp_path,
        once(is_input(wire.MessageType.FRAME), lambda one: dataclasses.replace(one, payload=b"QNTF")),
    )
    with pytest.raises(RecordingError, match="holds no message"):
        replay([nonsense], bundle)
    with pytest.raises(BundleError, match="was recorded with bundle"):
        replay([streamed], write_tiny_bundle(tmp_path / "other", seed=1))


def test_a_standing_answer_is_recorded_without_its_forecast(streamed: Path) -> None:
    with RecordingReader(streamed) as reader:
        sizes = {
            len(one.payload): restore(one.payload).answer
            for one in reader.records()
            if one.kind == Kind.STANDING_ANSWER
        }
    largest = sizes[max(sizes)]
    assert largest.response is not None
    assert not largest.response.any()
    assert max(sizes) < 2000 < largest.response.nbytes
