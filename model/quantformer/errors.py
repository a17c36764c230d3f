"""Every error that quantformer raises on purpose.

::

    QuantformerError                 exit status of the command line
    ├── UsageError                   2
    ├── DataError                    3
    │   ├── RecordingError
    │   ├── SignalError
    │   └── BundleError
    └── UnavailableError             4
        ├── MissingExtraError
        └── ProviderError

A message says what was found, what was expected and what to do about it.
"""

from __future__ import annotations


class QuantformerError(Exception):
    """Root of the tree; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(QuantformerError):
    """A setting, flag or combination of them makes no sense."""

    exit_code = 2


class DataError(QuantformerError):
    """The data given cannot be used."""

    exit_code = 3


class RecordingError(DataError):
    """A recording is missing something, or contradicts itself."""


class SignalError(DataError):
    """A window, F0 or label cannot be computed."""


class BundleError(DataError):
    """A bundle is incomplete, altered, foreign or of another schema."""


class UnavailableError(QuantformerError):
    """Something that the machine or the installation lacks."""

    exit_code = 4


class MissingExtraError(UnavailableError):
    """A package of an optional extra is not installed."""

    def __init__(self, *, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed: pip install 'quantformer[{extra}]'"
        )


class ProviderError(UnavailableError):
    """The asked execution provider is not the one that runs."""
