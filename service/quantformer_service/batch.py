"""Which questions are computed together: those that wait when inference becomes free, one of each session, up to a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from quantformer_service.inference import Slot
    from quantformer_service.questions import Question
    from quantformer_service.session import Session

#: Most questions of a batch, and most rows (ROIs x stimuli) of one that holds more than one question: two fields of view of
#: 241 neurons, or eight ensembles of 64. More would fill no lane that is idle, and keep what comes meanwhile waiting.
MOST_QUESTIONS, MOST_ROWS = 8, 512
#: So many rows without a forecast count as one with: on a CPU one takes 0.29 (paper's size) to 0.45 (`live`) of it.
ROWS_WITHOUT_FORECAST = 2


def cost_of(rows: int, *, forecast: bool) -> int:
    """What so many rows of the graph take inference, counted in rows with a forecast, rounded up."""
    return rows if forecast else -(-rows // ROWS_WITHOUT_FORECAST)


class Room:
    """What a batch holds so far: ``questions``, and their ``rows``, as `cost_of` counts them."""

    def __init__(self) -> None:
        self.questions = self.rows = 0

    def has(self, rows: int) -> bool:
        """Whether a question of so many rows may join; the first may always."""
        return self.questions == 0 or (self.questions < MOST_QUESTIONS and self.rows + rows <= MOST_ROWS)

    def take(self, rows: int) -> None:
        """A question of so many rows joins."""
        self.questions += 1
        self.rows += rows


def first_batch(waiting: deque[Slot]) -> list[Slot]:
    """Take out what comes first and is computed together, in its order; nothing is passed over.

    A batch ends before a question that it has no room for, and before a second one about the same neurons: those of one
    session are written into one memory.
    """
    batch: list[Slot] = []
    room = Room()
    while waiting and room.has(waiting[0].cost) and all(one.neuron is not waiting[0].neuron for one in batch):
        slot = waiting.popleft()
        slot.cost_before = room.rows
        room.take(slot.cost)
        batch.append(slot)
    return batch


def take_turns(
    sessions: dict[int, Session], *, now_ns: int, fits: Callable[[int], bool]
) -> list[tuple[Session, Question]]:
    """The standing questions to be asked together at ``now_ns``, one of each session; empty where none waits.

    The session that led longest ago leads, and then goes to the end of ``sessions``; its question may have any size. The
    others join, in their order, where there is room. ``fits`` says whether that many rows in all may begin now.
    """
    taken: list[tuple[Session, Question]] = []
    room = Room()

    def joins(rows: int) -> bool:
        return room.has(rows) and fits(room.rows + rows)

    for session in sessions.values():
        question = session.docket.next_standing(now_ns=now_ns, fits=joins)
        if question is not None:
            room.take(question.cost)
            taken.append((session, question))
    if taken:
        leader = taken[0][0].number
        sessions[leader] = sessions.pop(leader)
    return taken
