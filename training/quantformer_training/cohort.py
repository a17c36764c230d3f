"""The recordings of a study: sessions of several mice in a trace store, and what was left out, with the reason."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from quantformer.errors import DataError, QuantformerError, UsageError
from quantformer.recording import Origin, Recording
from quantformer_training.readers import open_recording
from quantformer_training.simulated import MouseConfig, allen_spikes_session, is_spikes_file, simulate_container
from quantformer_training.store import StoredSession, open_session, write_session
from quantformer_training.trials import EPOCHS

#: What a recording that does not name its animal calls it.
UNKNOWN_SUBJECT = "unknown"
#: Told what is being made or read now, in words.
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cohort:
    """``sessions`` in the order given; ``left_out`` maps a file or session to the reason."""

    sessions: tuple[StoredSession, ...]
    left_out: Mapping[str, str]

    @property
    def mice(self) -> tuple[str, ...]:
        """Subjects, in order of first appearance."""
        return tuple(dict.fromkeys(session.provenance.subject for session in self.sessions))

    @property
    def categories(self) -> tuple[str, ...]:
        """Stimulus categories, in order of first appearance; epochs are none."""
        return tuple(
            dict.fromkeys(
                name
                for session in self.sessions
                for name in dict.fromkeys(session.stimuli.category)
                if name not in EPOCHS
            )
        )

    @property
    def origin(self) -> Origin:
        """Where the data comes from.

        Raises:
            DataError: sessions of different origins, whose figures must not be mixed, or none at all.
        """
        origins = {session.provenance.origin for session in self.sessions}
        if len(origins) != 1:
            raise DataError(
                f"the sessions are {', '.join(sorted(origins)) or 'none'}; give data of one origin at a time"
            )
        return origins.pop()

    @property
    def fingerprint(self) -> str:
        """A digest of every session's traces and presentations."""
        return hashlib.sha256(" ".join(session.fingerprint for session in self.sessions).encode()).hexdigest()

    def session_with(self, *, mouse: str, category: str) -> StoredSession | None:
        """The mouse's first session in which the category was shown."""
        for session in self.sessions:
            if session.provenance.subject == mouse and category in session.stimuli.category:
                return session
        return None


def simulated_cohort(directory: Path, *, mice: int, neurons: int, seed: int, say: Say) -> Cohort:
    """``mice`` simulated mice, each through the three sessions of the Allen schedule; made once, then read from disk.

    Raises:
        UsageError: there is no mouse or no neuron.
    """
    if mice < 1 or neurons < 1:
        raise UsageError(f"{mice} mice of {neurons} neurons were asked for; at least one of each is needed")
    sessions = []
    for mouse in range(mice):
        config = MouseConfig(neurons=neurons, seed=seed * 1000 + mouse)
        names = [f"simulated-{seed}-{neurons}-{mouse:02d}-{session}" for session in "ABC"]
        if not all((directory / name).is_dir() for name in names):
            say(f"simulating mouse {mouse + 1} of {mice}")
            for name, made in zip(names, simulate_container(config), strict=True):
                write_session(made.recording, directory / name)
        sessions += [open_session(directory / name) for name in names]
    return Cohort(sessions=tuple(sessions), left_out={})


def recorded_cohort(paths: Sequence[Path], directory: Path, *, say: Say) -> Cohort:
    """Recordings from files of any kind that `open_recording` reads, folders searched for Allen NWB files.

    A file that cannot be used is left out with its reason; the others go on.

    Raises:
        DataError: not one file could be used.
    """
    sessions, left_out = [], {}
    for name, path in _named(_files(paths)).items():
        try:
            say(f"reading {name}")
            sessions.append(_stored(path, directory, unnamed=name.removesuffix(path.suffix)))
        except (QuantformerError, OSError) as error:
            left_out[name] = str(error)
    if not sessions:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in left_out.items()) or "no file was found"
        raise DataError(f"no recording could be used: {reasons}")
    return Cohort(sessions=tuple(sessions), left_out=left_out)


def _files(paths: Sequence[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        # A suite2p folder is a recording; any other folder holds some.
        several = sorted(path.glob("**/*.nwb")) if path.is_dir() else []
        found += several or [path]
    return found


def _named(files: Sequence[Path]) -> dict[str, Path]:
    """Each file once, by as much of the end of its path as tells it from the others."""
    paths = list(dict.fromkeys(path.resolve() for path in files))
    depth = 1
    while len({path.parts[-depth:] for path in paths}) < len(paths):
        depth += 1
    return {"/".join(path.parts[-depth:]): path for path in paths}


def _stored(path: Path, directory: Path, *, unnamed: str) -> StoredSession:
    """The file's session in the store, written where it is not there yet or the file is another one now; ``unnamed`` is the
    subject of a recording that does not name its animal.
    """
    status = path.stat()
    mark = hashlib.sha256(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:12]
    place = directory / f"{path.stem}-{mark}"
    if place.is_dir():
        return open_session(place)
    recording = _opened(path)
    if not len(recording.stimuli):
        raise DataError(f"{path.name} holds no presentations; a study needs stimuli")
    if recording.provenance.subject in ("", UNKNOWN_SUBJECT):
        # Two files of unnamed animals are not one animal.
        recording = replace(recording, provenance=replace(recording.provenance, subject=unnamed))
    return write_session(recording, place)


def _opened(path: Path) -> Recording:
    """The file's recording; a file of inferred spikes (`allen_spikes_session`) is seen through the indicator's model."""
    if path.suffix == ".npz" and is_spikes_file(path):
        return allen_spikes_session(path)
    return open_recording(path)
