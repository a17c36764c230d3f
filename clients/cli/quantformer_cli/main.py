"""`quantformer VERB ...`: finds the verb, reads the settings, turns errors into one line and an exit status.

A verb is a module of this package with ``add_parser(subparsers) -> Parser`` and ``run(args) -> int``. What it needs
beyond the standard library it imports inside `run`, so that ``--help`` is quick and works with every extra missing.
`run` finds the settings in ``args.resolved`` (`quantformer_service.settings.Resolved`), prints results on stdout and
logs on stderr, and raises `QuantformerError` for everything that can go wrong.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, ModuleType
from typing import NoReturn

from quantformer import __version__
from quantformer.errors import MissingExtraError, QuantformerError, UsageError

#: Every verb with its line of help; the module of the same name (`module_name`) is imported when the verb is asked for.
VERBS: Mapping[str, str] = {
    "demo": "train, serve and trigger on a simulated or real recording, live, with a report",
    "inspect": "print what is in a recording",
    "fetch-allen": "fetch the paper's Allen recordings, or others of that collection",
    "pretrain": "pre-train on recordings without labels",
    "finetune": "train on one recording, from a pre-trained auto-encoder to a fitted model",
    "evaluate": "score a model against the simple baselines",
    "export": "make the bundle of a fitted model",
    "reproduce": "the paper's tables and figures, and ours, with one command each",
    "serve": "run the real-time service on a bundle",
    "status": "ask a running service how it is",
    "bench": "measure a service: every stage of every frame, against bare inference",
    "doctor": "will this machine hold the frame rate; and with --loop, from light to pulse on a rig",
    "bundle": "verify or show a bundle",
    "recording": "verify or show recorded sessions",
    "replay": "ask a recording's questions again and compare",
    "config": "show every setting and where it came from",
}

#: Which extra brings a package that a verb may find missing.
_EXTRAS = {
    **dict.fromkeys(("onnxruntime", "fastapi", "starlette", "uvicorn", "websockets", "pydantic", "psutil"), "serve"),
    **dict.fromkeys(("torch", "onnx", "onnxscript", "scipy", "sklearn", "h5py", "matplotlib"), "train"),
    "safetensors": "serve",
}

DONE, FAILED, INTERRUPTED, TERMINATED = 0, 1, 130, 143


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are `UsageError`, so that they end like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing and exiting."""
        raise UsageError(f"{message} (see '{self.prog} --help')")


Subparsers = argparse._SubParsersAction  # typeshed has no public name for what add_subparsers returns


class _TerminatedError(BaseException):
    """SIGTERM arrived; a BaseException so that no `except Exception` swallows it."""


def main(arguments: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit status; errors go to stderr."""
    debug = "--debug" in arguments
    try:
        return _run(arguments)
    except SystemExit as end:  # argparse after --help and --version
        return end.code if isinstance(end.code, int) else FAILED
    except KeyboardInterrupt:
        return _complain("interrupted", debug=debug, status=INTERRUPTED)
    except _TerminatedError:
        return _complain("terminated", debug=debug, status=TERMINATED)
    except BrokenPipeError:
        # The reader of our stdout left (`| head`): nothing more can be said there, and saying so is no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except QuantformerError as error:
        return _complain(str(error), debug=debug, status=error.exit_code)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _EXTRAS:
            return _complain(f"{error}; the installation is incomplete", debug=debug, status=FAILED)
        missing = MissingExtraError(package=package, extra=_EXTRAS[package], purpose=f"quantformer {arguments[0]}")
        return _complain(str(missing), debug=debug, status=missing.exit_code)
    except Exception as error:
        if isinstance(status := getattr(error, "exit_code", None), int):  # the clients' own tree of errors
            return _complain(str(error), debug=debug, status=status)
        message = f"unexpected {type(error).__name__}: {error}" + ("" if debug else "; --debug shows where")
        return _complain(message, debug=debug, status=FAILED)


def entry() -> NoReturn:
    """The console script."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _on_signal)
    status = main(sys.argv[1:])
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def _on_signal(number: int, frame: FrameType | None) -> None:
    if _swallows(frame):
        threading.Timer(0.02, _deliver, [number]).start()
        return
    raise KeyboardInterrupt if number == signal.SIGINT else _TerminatedError


def _swallows(frame: FrameType | None) -> bool:
    """Whether Python would print and forget what is raised here: finalizers, and the import lock's weakref callback."""
    while frame is not None:
        code = frame.f_code
        if code.co_name == "__del__" or (code.co_name == "cb" and code.co_filename == "<frozen importlib._bootstrap>"):
            return True
        frame = frame.f_back
    return False


def _deliver(number: int) -> None:
    """The signal once more, to the main thread, so that it also ends what that thread waits for."""
    ident = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and ident is not None:
        signal.pthread_kill(ident, number)
    else:
        signal.raise_signal(number)


def _complain(message: str, *, debug: bool, status: int) -> int:
    if debug:
        traceback.print_exc()
    print("quantformer: error: " + " ".join(message.split()), file=sys.stderr)
    return status


def _run(arguments: Sequence[str]) -> int:
    if not arguments:
        _top_parser(None).print_help(sys.stderr)
        raise UsageError("no verb was given; choose one of those above, for example 'quantformer demo'")
    verb = arguments[0]
    if not verb.startswith("-") and verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, n=1, cutoff=0.0)[0]
        raise UsageError(f"{verb!r} is not a verb; the nearest is {near!r} ('quantformer --help' lists all)")
    module = None if verb.startswith("-") else importlib.import_module(module_name(verb))
    common, rest = _common_parser().parse_known_args(arguments)
    args = _top_parser(module).parse_args(rest)
    if module is None:
        raise UsageError(f"{verb} is not an option here; the verb comes first: 'quantformer VERB {verb}'")

    from quantformer_service.logs import configure
    from quantformer_service.settings import resolve

    given = {key.removeprefix("set_"): value for key, value in vars(args).items() if key.startswith("set_")}
    given |= {"log": common.log, "log_level": common.log_level}
    flags = {key: value for key, value in given.items() if value is not None}
    args.resolved = resolve(flags=flags, config=common.config)
    settings = args.resolved.settings
    configure(form=settings.log, level=settings.log_level, process=verb)
    logging.captureWarnings(True)
    status: int = module.run(args)
    return status


def module_name(verb: str) -> str:
    """The module of a verb: a hyphen, which no module's name can hold, becomes an underscore."""
    return f"quantformer_cli.{verb.replace('-', '_')}"


def _common_parser() -> Parser:
    """Options that every verb takes, anywhere on its line."""
    common = Parser(prog="quantformer", add_help=False, allow_abbrev=False)
    group = common.add_argument_group("for every verb")
    group.add_argument("--config", type=Path, metavar="FILE", help="TOML file of settings (else ./quantformer.toml)")
    group.add_argument("--log", metavar="FORM", help="form of the log on stderr: text or json")
    group.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    group.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return common


def _top_parser(module: ModuleType | None) -> Parser:
    """The parser with every verb listed and one of them filled in."""
    top = Parser(
        prog="quantformer",
        description="Real-time closed-loop forecasting for two-photon calcium imaging.",
        epilog="example: quantformer demo\n\nexit status: 0 done, 1 failed, 2 usage, 3 bad data or bundle, "
        "4 missing extra or provider, 130 SIGINT, 143 SIGTERM",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_common_parser()],
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"quantformer {__version__}")
    subparsers = top.add_subparsers(dest="verb", metavar="VERB", title="verbs", required=True)
    for verb, summary in VERBS.items():
        if module is not None and module.__name__ == module_name(verb):
            module.add_parser(subparsers)
        else:
            subparsers.add_parser(verb, help=summary, add_help=False)
    return top


def add_verb(subparsers: Subparsers[Parser], name: str, *, about: str, example: str) -> Parser:
    """Add the parser of a verb of `VERBS`, with its description and the example that its help ends in."""
    return subparsers.add_parser(
        name,
        help=VERBS[name],
        description=about,
        epilog=f"example: {example}\n\nEvery verb also takes --config FILE, --log text|json, --log-level and --debug.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_settings(parser: Parser) -> None:
    """Give a verb a flag for every setting; `main` folds those given into ``args.resolved``."""
    from quantformer_service.settings import table

    group = parser.add_argument_group("settings", "environment and quantformer.toml set them too: docs/settings.md")
    for row in table():
        if row.name not in ("log", "log_level"):
            default = f" (default: {row.default})" if row.default != "" else ""
            text = f"{row.help}{f', {row.unit}' if row.unit else ''}{default}".replace("%", "%%")
            group.add_argument(row.flag, dest=f"set_{row.name}", metavar=row.kind.__name__.upper(), help=text)


if __name__ == "__main__":
    entry()
