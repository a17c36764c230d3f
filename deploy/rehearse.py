"""Perform the image's own steps without a container engine, and smoke-test the result.

    python deploy/rehearse.py --bundle DIR [--variant cpu|gpu] [--python PYTHON]

Read from the Dockerfile: the files that the builder copies (and no others), its RUN step, the image's environment, user,
entry point, command, health check and stop signal. They are performed in a scratch directory, in a bare virtual
environment: install, start on free ports, wait for the health check, run deploy/smoke.py, stop, and see that the exit
status is the signal's and that no process stays. Standard library only. Exit status 0: all of it happened.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "/opt/quantformer"
PORTS = ("HTTP", "ZMQ", "PUB", "TCP")
READY_WITHIN_S, STOPPED_WITHIN_S = 120.0, 15.0


class RehearsalError(Exception):
    """A step of the image did not do what it must."""


@dataclass(frozen=True, kw_only=True)
class Image:
    """What the Dockerfile says. ``copied`` are sources relative to the repository; ``installed`` the builder's RUN."""

    copied: tuple[tuple[str, str], ...]
    installed: str
    environment: dict[str, str]
    user: int
    command: tuple[str, ...]
    healthy: str
    stop: signal.Signals
    ports: tuple[int, ...]
    not_rehearsed: tuple[str, ...]


def read_dockerfile(path: Path = ROOT / "Dockerfile") -> Image:
    """Read the instructions that a rehearsal needs.

    Raises:
        RehearsalError: an instruction of another form than the rehearsal can perform.
    """
    text = re.sub(r"^\s*#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in text.splitlines() if line)]
    stages = [index for index, (word, _) in enumerate(lines) if word == "FROM"]
    if len(stages) != 2:
        raise RehearsalError(f"{path.name}: found {len(stages)} stages, expected a builder and an image")
    builder, image = lines[stages[0] : stages[1]], lines[stages[1] :]
    last = dict(image)
    copied = [tuple(rest.rsplit(maxsplit=1)) for word, rest in builder if word == "COPY"]
    runs = [rest for word, rest in builder if word == "RUN"]
    if len(runs) != 1 or not runs[0].startswith("deploy/install.sh "):
        raise RehearsalError(f"{path.name}: found builder steps {runs}, expected one deploy/install.sh")
    health = last["HEALTHCHECK"].partition(" CMD ")[2]
    return Image(
        copied=tuple((source, target) for sources, target in copied for source in sources.split()),
        installed=runs[0],
        environment=dict(re.findall(r"(\w+)=(\S+)", last["ENV"])),
        user=int(last["USER"]),
        command=(*json.loads(last["ENTRYPOINT"]), *json.loads(last["CMD"])),
        healthy=health,
        stop=signal.Signals[last["STOPSIGNAL"]],
        ports=tuple(map(int, last["EXPOSE"].split())),
        not_rehearsed=tuple(f"{word} {rest}" for word, rest in image if word == "RUN"),
    )


def copy_sources(image: Image, target: Path) -> None:
    """Lay out what the builder's COPY steps would, and nothing else."""
    for source, place in image.copied:
        origin = ROOT / source
        if origin.is_dir():
            shutil.copytree(origin, target / place, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            end = target / place
            end.mkdir(parents=True, exist_ok=True)
            shutil.copy2(origin, end)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def rehearse(*, bundle: Path, variant: str, python: str, scratch: Path) -> None:
    """Build, start, ask and stop, all under ``scratch``.

    Raises:
        RehearsalError: a step failed; its output is in the message or on stderr.
    """
    image = read_dockerfile()
    source, prefix, mounted, work = (scratch / name for name in ("source", "image", "bundle", "work"))
    source.mkdir()
    work.mkdir()
    copy_sources(image, source)
    shutil.copytree(bundle, mounted)
    for path in (mounted, *mounted.iterdir()):  # as the compose file mounts it: read-only
        path.chmod(0o555 if path.is_dir() else 0o444)
    bare = {name: os.environ[name] for name in os.environ if name.startswith("PIP_") or name in {"PATH", "HOME"}}
    step("install", f"{image.installed} ({variant})")
    words = image.installed.replace("${VARIANT}", variant).replace(PREFIX, str(prefix)).split()
    run([*words, python], cwd=source, env=bare)
    packages = next(prefix.glob("lib/python*/site-packages"))
    if found := sorted(path.name for path in packages.glob("*torch*")):
        raise RehearsalError(f"the image holds {', '.join(found)}; expected no torch")

    ports = free_ports(len(PORTS))
    search = image.environment["PATH"].replace(PREFIX, str(prefix)).replace("$PATH", os.defpath)
    environment = {
        **image.environment,
        "PATH": search,
        "QUANTFORMER_BUNDLE": str(mounted),
        "QUANTFORMER_TOKEN": secrets.token_hex(32),
        "QUANTFORMER_PROVIDER": "auto" if variant == "gpu" else "cpu",
        **{f"QUANTFORMER_{name}_PORT": str(port) for name, port in zip(PORTS, ports, strict=True)},
    }
    user = drop_to(image.user, prefix=prefix)
    step("start", f"{' '.join(image.command)} as user {os.getuid() if user is None else user}")
    service = subprocess.Popen(
        [str(prefix / "bin" / image.command[0]), *image.command[1:]],
        cwd=work, env=environment, user=user, group=user, start_new_session=True, stdout=sys.stderr,
    )  # fmt: skip
    try:
        step("health check", image.healthy)
        wait_healthy(service, image=image, environment=environment, cwd=work)
        step("ask", "deploy/smoke.py")
        run([str(prefix / "bin/python"), str(ROOT / "deploy/smoke.py"), "--http-port", str(ports[0])],
            cwd=work, env=environment)  # fmt: skip
        step("stop", image.stop.name)
        service.send_signal(image.stop)
        try:
            status = service.wait(STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise RehearsalError(f"still running {STOPPED_WITHIN_S:.0f} s after {image.stop.name}") from None
        if status != 128 + image.stop:
            raise RehearsalError(f"found exit status {status} after {image.stop.name}, expected {128 + image.stop}")
        if not ended(service.pid):
            raise RehearsalError("the service ended and left a process of its own behind")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(service.pid, signal.SIGKILL)
        service.wait()
    for omitted in image.not_rehearsed:
        step("not rehearsed", omitted)


def ended(group: int) -> bool:
    """Whether no process of the group is left, soon."""
    deadline = time.monotonic() + 2.0  # a process that ended counts until it is reaped
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def drop_to(user: int, *, prefix: Path) -> int | None:
    """The image's user where this process may become it and it can read the interpreter; else None: no change."""
    if os.geteuid() != 0:
        step("not rehearsed", f"user {user}: only root can become another; runs as {os.getuid()}")
        return None
    try:
        subprocess.run([str(prefix / "bin/python"), "-c", ""], user=user, group=user, check=True, stderr=subprocess.DEVNULL)
    except (PermissionError, subprocess.CalledProcessError):
        step("not rehearsed", f"user {user}: it cannot read this interpreter; name a public one with --python")
        return None
    return user


def wait_healthy(service: subprocess.Popen[bytes], *, image: Image, environment: dict[str, str], cwd: Path) -> None:
    """Ask the image's health check until it says yes."""
    deadline = time.monotonic() + READY_WITHIN_S
    while True:
        if service.poll() is not None:
            raise RehearsalError(f"the service ended with status {service.returncode} before it was ready")
        done = subprocess.run(["sh", "-c", image.healthy], env=environment, cwd=cwd, capture_output=True, check=False)
        if done.returncode == 0:
            return
        if time.monotonic() > deadline:
            said = (done.stdout + done.stderr).decode(errors="replace").strip()
            raise RehearsalError(f"not ready after {READY_WITHIN_S:.0f} s; the health check says: {said}")
        time.sleep(0.5)


def run(words: list[str], *, cwd: Path, env: dict[str, str]) -> None:
    """Run one step with its output on stderr."""
    done = subprocess.run(words, cwd=cwd, env=env, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise RehearsalError(f"{' '.join(words)} ended with status {done.returncode}")


def step(name: str, what: str) -> None:
    """Say what is being done."""
    print(f"{name.ljust(14)} {what}", flush=True)


def main() -> int:
    """Rehearse in a scratch directory that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, help="directory of the bundle to serve")
    parser.add_argument("--variant", choices=("cpu", "gpu"), default="cpu", help="(default %(default)s)")
    parser.add_argument("--python", default=sys.executable, help="interpreter of the image (default: this one)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantformer-image-") as folder:
        scratch = Path(folder)
        scratch.chmod(0o755)  # the image's user reads it
        try:
            rehearse(bundle=given.bundle, variant=given.variant, python=given.python, scratch=scratch)
        except RehearsalError as error:
            print(f"rehearsal failed: {error}", file=sys.stderr)
            return 1
        finally:
            (scratch / "bundle").chmod(0o755) if (scratch / "bundle").exists() else None
    print("the image's steps work")
    return 0


if __name__ == "__main__":
    sys.exit(main())
