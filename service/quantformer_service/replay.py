"""A recording asked again: the same sessions, windows, inference and triggers, without sockets and without a clock.

What the engine took is given to the same code at the times that it was taken at; each question is asked where it was
asked, and its answer and the decisions on it are compared with those that were recorded.
"""

from __future__ import annotations

import dataclasses
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from quantformer.bundle import Bundle
from quantformer.errors import BundleError, ProviderError, RecordingError
from quantformer_client import wire
from quantformer_service.answer_comparison import compare_answers, first_difference
from quantformer_service.answering import Answering, is_late
from quantformer_service.dispatch import Dispatcher
from quantformer_service.inference import Inference, Slot
from quantformer_service.provenance import Provenance, provenance, read_provenance
from quantformer_service.questions import Question
from quantformer_service.recorded_answer import restore
from quantformer_service.recording_file import Ending, Kind, Record, RecordingReader
from quantformer_service.refusal import Refusal
from quantformer_service.runtime import Provider
from quantformer_service.session import Session
from quantformer_service.stream import Peer
from quantformer_service.tap import Told
from quantformer_service.trigger import Disarmed

#: Differences that are described; all are counted.
MOST_DESCRIBED = 100
#: No limit that one session met is met here: what was taken is taken again.
_MANY = 1 << 20


@dataclasses.dataclass(kw_only=True)
class Tally:
    """How many came out ``equal`` bit for bit, ``within`` the tolerance, ``different``; and why others were not compared."""

    equal: int = 0
    within: int = 0
    different: int = 0
    not_asked: Counter[str] = dataclasses.field(default_factory=Counter)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay found. ``unlike`` lists what makes its arithmetic another one than the recorded (empty: bit for bit is
    asked); ``differences`` names what came out otherwise, up to `MOST_DESCRIBED` of them.
    """

    epoch: int
    unlike: tuple[str, ...]
    records: int
    frames: int
    sessions: int
    torn: bool
    lost: int
    dropped: int
    answers: Tally
    failures: Tally
    decisions: Tally
    differences: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether every answer and decision could be compared, and none came out otherwise."""
        tallies = (self.answers, self.failures, self.decisions)
        return not self.differences and not any(one.different or one.not_asked for one in tallies)


def replay(paths: Sequence[Path], bundle: Bundle, *, provider: Provider = "auto") -> list[Replayed]:
    """Replay the recordings of one or several runs of the engine, each run by itself, in the order in which they were.

    Of one run, its files follow each other; what both of two hold is read once.

    Raises:
        RecordingError: a file is no recording, damaged before its end, or of another wire version.
        BundleError: a recording was made with another bundle, or a precision that this one has no graph of.
        ProviderError: ``provider`` is named and is not there.
    """
    runs: dict[int, list[RecordingReader]] = {}
    readers = []
    try:
        for path in paths:
            readers.append(reader := RecordingReader(path))
            if reader.header is not None:
                runs.setdefault(reader.header.epoch, []).append(reader)
        if not runs:
            raise RecordingError("no file holds as much as the beginning of a recording; there is nothing to replay")
        outcomes = []
        for group in sorted(runs.values(), key=_began):
            group.sort(key=lambda one: _began([one]))
            outcomes.append(_replay_run(group, bundle, provider=provider))
        return outcomes
    finally:
        for reader in readers:
            reader.close()


def _began(group: Sequence[RecordingReader]) -> int:
    return min(reader.header.unix_ns for reader in group if reader.header is not None)


def _replay_run(readers: Sequence[RecordingReader], bundle: Bundle, *, provider: Provider) -> Replayed:
    records = _joined(readers)
    first = next(records, None)
    if first is None:
        raise RecordingError(f"{readers[0].path} ends before it says what it was made with; there is nothing to replay")
    made_with = read_provenance(first.payload)
    if made_with.bundle != bundle.hash:
        raise BundleError(
            f"{readers[0].path} was recorded with bundle {made_with.bundle}, found {bundle.hash}; give its own with --bundle"
        )
    if made_with.wire.partition(".")[0] != str(wire.MAJOR):
        raise RecordingError(
            f"{readers[0].path} was recorded over wire version {made_with.wire}, whose answers hold other numbers than those "
            f"of {wire.MAJOR}.{wire.MINOR}; replay it with a quantformer that speaks it"
        )
    player = _Player(made_with, bundle.in_precision(made_with.precision), provider=provider)
    try:
        for record in records:
            player.play(record)
    finally:
        player.close()
    return player.outcome(torn=any(reader.ending == Ending.TORN for reader in readers))


def _joined(readers: Iterable[RecordingReader]) -> Iterator[Record]:
    """The records of files that follow each other: one START, then every record once. A gap becomes a LOST."""
    last: int | None = None
    for reader in readers:
        for record in reader.records():
            if record.kind == Kind.END:
                continue
            if record.kind == Kind.START:
                if last is None:
                    last = record.sequence
                    yield record
                elif record.sequence > last:
                    yield Record(
                        kind=Kind.LOST, sequence=record.sequence, stamp_ns=record.stamp_ns, id=record.sequence - last
                    )
                    last = record.sequence
                continue
            assert last is not None  # the reader began with START
            if record.sequence > last:
                last = record.sequence
                yield record


class _Player:
    """The engine without its sockets: records in, comparisons out."""

    def __init__(self, made_with: Provenance, bundle: Bundle, *, provider: Provider) -> None:
        settings = made_with.engine_settings()
        settings = dataclasses.replace(settings, pending_questions=_MANY, sessions=_MANY)
        self._answering = Answering(bundle)
        self._inference, self._done = _started(bundle, made_with, provider=provider)
        here = provenance(
            settings,
            bundle,
            provider=self._inference.provider,
            threads=self._inference.threads,
            epoch=made_with.epoch,
        )
        #: What answers depend on and is not what it was.
        self.unlike = tuple(
            f"{then}, here {now}"
            for then, now in zip(made_with.arithmetic, here.arithmetic, strict=True)
            if then != now
        )
        self._epoch = made_with.epoch
        self._number = 0
        self._dispatcher = Dispatcher(
            settings,
            bundle,
            publish=lambda *_, **__: None,
            lose=lambda *_: None,
            status=_not_asked,
            welcome=_not_asked,
            number=lambda: self._number,
        )
        self._dispatcher.closed = None
        self._peer = Peer()
        #: Questions under way: their session and the answer, or why there is none.
        self._asked: dict[int, tuple[Session, Question, wire.Answer | Refusal]] = {}
        #: Decisions that the last answer must be followed by; None: they cannot be known.
        self._expected: list[wire.Decision] | None = None
        self._answered: tuple[Session | None, wire.Answer] | None = None
        self._kinds: Counter[int] = Counter()
        self._frames = self._sessions = self._lost = self._dropped = 0
        self.answers, self.failures, self.decisions = Tally(), Tally(), Tally()
        self._differences: list[str] = []

    def close(self) -> None:
        """End the inference thread."""
        self._inference.stop(5.0)

    def outcome(self, *, torn: bool) -> Replayed:
        """What was found."""
        for session in self._dispatcher.sessions.values():
            self._dropped += session.counters["standing_dropped"]
        return Replayed(
            epoch=self._epoch,
            unlike=self.unlike,
            records=sum(self._kinds.values()),
            frames=self._frames,
            sessions=self._sessions,
            torn=torn,
            lost=self._lost,
            dropped=self._dropped,
            answers=self.answers,
            failures=self.failures,
            decisions=self.decisions,
            differences=tuple(self._differences),
        )

    def play(self, record: Record) -> None:
        """One record."""
        self._kinds[record.kind] += 1
        try:
            if record.kind == Kind.INPUT:
                self._take(record)
            elif record.kind == Kind.ASKED:
                self._ask(record)
            elif record.kind == Kind.ANSWER:
                self._compare(record, wire.decode(record.payload), checksum=None)
            elif record.kind == Kind.STANDING_ANSWER:
                standing = restore(record.payload)
                self._compare(record, standing.message, checksum=standing.checksum)
            elif record.kind == Kind.FAILED:
                self._fail(record)
            elif record.kind == Kind.OUTPUT:
                self._hear(record, wire.decode(record.payload))
            elif record.kind == Kind.LOST:
                self._lose(record)
        except (wire.WireError, msgspec.MsgspecError) as error:
            raise RecordingError(f"record {record.sequence} holds no message: {error}") from error

    # --- what came in -------------------------------------------------------------------------------------------------

    def _take(self, record: Record) -> None:
        message = wire.decode(record.payload)
        kind, head = message.header.type, message.header
        everybody = kind == wire.MessageType.OPEN or (kind == wire.MessageType.STOP and head.session == 0)
        session = self._dispatcher.sessions.get(head.session)
        if session is None and not everybody:
            return
        if kind in (wire.MessageType.ONSET, wire.MessageType.STANDING):
            self._dispatcher.questions = record.id - 1
        self._number = record.session if kind == wire.MessageType.OPEN else record.id
        try:
            self._dispatcher.handle(message, peer=self._peer, now_ns=record.stamp_ns)
        except Refusal as refusal:
            self._differ(record, f"{kind.name} was taken, and is refused here: {refusal}")
            return
        if kind == wire.MessageType.CLOSE and session is not None:
            self._dropped += session.counters["standing_dropped"]
        self._frames += kind == wire.MessageType.FRAME
        self._sessions += kind == wire.MessageType.OPEN

    def _lose(self, record: Record) -> None:
        """Nothing is known any more of the sessions that were open."""
        self._lost += record.id
        for session in list(self._dispatcher.sessions.values()):
            self._end(session)

    def _end(self, session: Session) -> None:
        self._dispatcher.end(session)
        self._dropped += session.counters["standing_dropped"]

    # --- questions and answers ----------------------------------------------------------------------------------------

    def _ask(self, record: Record) -> None:
        session = self._dispatcher.sessions.get(record.session)
        if session is None:
            return
        question = session.docket.take(record.id, now_ns=record.stamp_ns)
        if question is None:
            self._differ(record, f"question {record.id} was asked, and is not there to be asked")
            return
        outcome: wire.Answer | Refusal
        slot = Slot()
        try:
            session.capture(question, slot)
        except Refusal as refusal:
            outcome = refusal
        else:
            self._compute(slot)
            draft = self._answering.draft(question)
            self._answering.fill(draft, question, slot)
            outcome = draft.answer
        self._asked[record.id] = (session, question, outcome)

    def _compute(self, slot: Slot) -> None:
        self._done.clear()
        self._inference.submit(slot)
        while self._inference.collect() is None:
            self._done.wait()
            self._done.clear()
        if slot.failure is not None:
            raise RecordingError(f"inference failed in the replay: {slot.failure}")

    def _compare(self, record: Record, message: wire.Message, *, checksum: int | None) -> None:
        recorded = message.body
        if not isinstance(recorded, wire.Answer):
            raise RecordingError(f"record {record.sequence} holds a {message.header.type.name}, expected an ANSWER")
        session = self._dispatcher.sessions.get(record.session)
        self._answered, self._expected = (session, recorded), None
        found = self._asked.pop(recorded.question, None)
        if found is None:
            why = "its session is not known from here on" if session is None else "it was asked before this recording"
            self.answers.not_asked[why] += 1
            return
        session, question, outcome = found
        if isinstance(outcome, Refusal):
            self.answers.different += 1
            self._differ(record, f"question {recorded.question} was answered, and is refused here: {outcome}")
            return
        flags = outcome.flags | (
            wire.Flags.LATE if is_late(session, question, now_ns=recorded.published_ns) else wire.Flags(0)
        )
        again = msgspec.structs.replace(outcome, flags=flags)
        verdict, what = compare_answers(recorded, again, checksum=checksum, exact=not self.unlike)
        setattr(self.answers, verdict, getattr(self.answers, verdict) + 1)
        if verdict == "different":
            self._differ(record, f"answer to question {recorded.question} about frame {recorded.onset_frame}: {what}")

    def _fail(self, record: Record) -> None:
        """A question without an answer: the frames were not there when it was asked, or it was lost with its window."""
        found = self._asked.pop(record.id, None)
        session = self._dispatcher.sessions.get(record.session)
        if found is None:
            if session is not None:
                session.docket.take(record.id, now_ns=record.stamp_ns)
            return
        told = msgspec.json.decode(record.payload, type=Told)
        then = told.code if record.detail else ""
        now = found[2].code.value if isinstance(found[2], Refusal) else ""
        if then != now:
            self.failures.different += 1
            what = f"refused with {then}" if then else "asked"
            self._differ(
                record, f"question {record.id} was {what}, and is {f'refused with {now}' if now else 'asked'} here"
            )
        elif then:
            self.failures.equal += 1

    # --- decisions ----------------------------------------------------------------------------------------------------

    def _hear(self, record: Record, message: wire.Message) -> None:
        """What the engine published."""
        body = message.body
        session = self._dispatcher.sessions.get(record.session)
        if isinstance(body, wire.Decision):
            self._decide(record, body)
        elif session is None:
            return
        elif isinstance(body, wire.SessionLost):
            self._end(session)
        elif isinstance(body, wire.Trigger) and body.reason in (Disarmed.RECORDER, Disarmed.STOPPING):
            session.trigger.disarm(Disarmed(body.reason))

    def _decide(self, record: Record, decision: wire.Decision) -> None:
        if self._answered is None or self._answered[0] is None or self._answered[1].question != decision.question:
            self.decisions.not_asked["its session is not known from here on"] += 1
            return
        session, answer = self._answered
        assert session is not None
        if self._expected is None:
            self._expected = session.trigger.decide(answer, now_ns=decision.decided_ns)
        expected = self._expected.pop(0) if self._expected else None
        if expected == decision:
            self.decisions.equal += 1
            return
        self.decisions.different += 1
        what = "no rule decides here" if expected is None else first_difference(decision, expected)
        self._differ(record, f"decision of rule {decision.rule!r} on question {decision.question}: {what}")

    def _differ(self, record: Record, what: str) -> None:
        if len(self._differences) < MOST_DESCRIBED:
            self._differences.append(f"record {record.sequence}: {what}")


def _not_asked() -> Any:
    raise AssertionError("nothing that is recorded asks for this")


def _started(bundle: Bundle, made_with: Provenance, *, provider: Provider) -> tuple[Inference, threading.Event]:
    """Inference, warmed up: on the recorded provider where ``auto`` was asked and it is there, else on the CPU."""
    wanted: list[Provider] = [provider]
    if provider == "auto":
        wanted = ["cuda", "cpu"] if made_with.provider == "cuda" else ["cpu"]
    while True:
        done = threading.Event()
        inference = Inference(bundle, provider=wanted[0], threads=made_with.threads, on_done=done.set)
        inference.start()
        while not inference.ready.is_set() and inference.failure is None:
            done.wait()
            done.clear()
        if inference.failure is None:
            return inference, done
        if not isinstance(inference.failure, ProviderError) or len(wanted) == 1:
            raise inference.failure
        wanted = wanted[1:]
