"""Plain values as TOML text; the standard library only reads it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def render_toml(tables: Mapping[str, Any], *, path: str = "") -> str:
    """A mapping of plain values, lists and mappings as TOML."""
    plain = {name: value for name, value in tables.items() if not isinstance(value, Mapping)}
    lines = [f"{_quoted(name)} = {_toml(value)}" for name, value in plain.items()]
    text = "\n".join([f"[{path}]", *lines] if path else lines) + "\n" if lines or path else ""
    for name, value in tables.items():
        if isinstance(value, Mapping):
            text += ("\n" if text else "") + render_toml(value, path=f"{path}.{_quoted(name)}" if path else _quoted(name))
    return text


def _toml(value: Any) -> str:
    if isinstance(value, str):
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return repr(value)


def _quoted(key: str) -> str:
    return key if key.isascii() and key.replace("_", "").replace("-", "").isalnum() else _string(key)


def _string(text: str) -> str:
    # A JSON string is a TOML string, but for the one control character that JSON lets pass.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
