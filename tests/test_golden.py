"""The golden messages hold the wire: these bytes mean this, and this is written as these bytes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from quantformer_client import wire


def _load() -> ModuleType:
    path = Path(__file__).with_name("golden_messages.py")
    spec = importlib.util.spec_from_file_location("golden_messages", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


golden = _load()
BY_NAME = {body.message_type.name.lower(): body for body in golden.BODIES}


def test_every_type_has_one_golden_message_and_nothing_else_is_there() -> None:
    types = {message_type.name.lower() for message_type in wire.MessageType}
    assert set(BY_NAME) == types
    assert {path.stem for path in golden.GOLDEN.glob("*.json")} == types


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_golden_bytes(name: str) -> None:
    content = json.loads((golden.GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    data = bytes.fromhex(content.pop("hex"))
    assert golden.encode(BY_NAME[name]) == data
    assert golden.meaning(wire.decode(data)) == content
