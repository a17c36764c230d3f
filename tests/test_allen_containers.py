"""Which experiments are chosen, from the paper's table and from a list as the warehouse writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from allen_list import allen_record
from hypothesis import given
from hypothesis import strategies as st

from quantformer.errors import DataError, UsageError
from quantformer_training.allen_containers import (
    CONTAINERS,
    AllenExperiment,
    Choice,
    choose,
    paper_experiments,
    read_experiments,
)

RECORDS = [
    allen_record(501574836, container=511510667, session="A", cre="Cux2-CreERT2", area="VISp", depth=275),
    allen_record(501773889, container=511510667, session="C", cre="Cux2-CreERT2", area="VISp", depth=275),
    allen_record(600, container=60, session="A", cre="Rorb-IRES2-Cre", area="VISl", depth=275),
    allen_record(601, container=60, session="C2", cre="Rorb-IRES2-Cre", area="VISl", depth=275),
    allen_record(700, container=70, session="A", cre="Rorb-IRES2-Cre", area="VISl", depth=375),
    allen_record(800, container=80, session="A", cre="Rorb-IRES2-Cre", area="VISl", depth=275, failed=True),
]
LISTED = read_experiments(json.dumps(RECORDS).encode())


def ids(choice: Choice, listed: tuple[AllenExperiment, ...] | None = None) -> list[int]:
    return [one.id for one in choose(choice, listed=listed)]


def test_the_papers_table() -> None:
    found = paper_experiments()
    assert len(found) == len({one.id for one in found}) == 33
    assert len(CONTAINERS) == 11
    assert [one.session for one in found] == ["A", "B", "C"] * 11
    assert found[3] == AllenExperiment(id=501574836, container=511510667, session="A")


def test_without_a_list() -> None:
    assert ids(Choice()) == [one.id for one in paper_experiments()]
    assert ids(Choice(sessions=("B",))) == [three[1] for three in CONTAINERS.values()]
    assert ids(Choice(containers=(511510667,), sessions=("A", "C"))) == [501574836, 501773889]
    assert ids(Choice(experiments=(12345, 501574836, 12345))) == [12345, 501574836]
    assert ids(Choice(experiments=(501574836,), containers=(511510667,))) == [501574836, 501498760, 501773889]


def test_what_needs_the_list() -> None:
    assert not any(one.needs_list for one in (Choice(), Choice(sessions=("A",)), Choice(experiments=(5,))))
    assert not Choice(containers=(511510667,), experiments=(501574836,), sessions=("A",)).needs_list
    assert all(
        one.needs_list
        for one in (
            Choice(containers=(60,)),
            Choice(experiments=(5,), sessions=("A",)),
            Choice(cre_lines=("x",)),
            Choice(areas=("VISp",)),
            Choice(depths_um=(275,)),
        )
    )


def test_with_a_list() -> None:
    assert ids(Choice(cre_lines=("Rorb-IRES2-Cre",)), LISTED) == [600, 601, 700]
    assert ids(Choice(cre_lines=("Rorb-IRES2-Cre",), depths_um=(275,)), LISTED) == [600, 601]
    assert ids(Choice(areas=("VISp", "VISl"), sessions=("C",)), LISTED) == [501773889, 601]
    assert ids(Choice(areas=("VISl",), sessions=("C2",)), LISTED) == [601]
    assert ids(Choice(depths_um=(275,), containers=(511510667,)), LISTED) == [501574836, 501773889, 501498760][:2]
    # A failed container is taken only if it is named.
    assert ids(Choice(containers=(80,)), LISTED) == ids(Choice(experiments=(800,)), LISTED) == [800]
    assert LISTED[3] == AllenExperiment(
        id=601, container=60, session="C2", cre_line="Rorb-IRES2-Cre", area="VISl", depth_um=275
    )


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (Choice(containers=(61,)), "container 61 is not in the list"),
        (Choice(experiments=(61,)), "experiment 61 is not in the list"),
        (Choice(cre_lines=("Rorb",)), r"cre line Rorb \(there are Cux2-CreERT2, Rorb-IRES2-Cre\)"),
        (Choice(areas=("V1",), sessions=("A",)), r"session A .* and area V1 \(there are VISl, VISp\)"),
        (Choice(experiments=(700,), depths_um=(275,)), r"depth 275 \(there are 375\)"),
    ],
)
def test_what_is_not_there_is_named(choice: Choice, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        choose(choice, listed=LISTED)


@pytest.mark.parametrize("wrong", [0, -1, 10**12])
def test_ids_that_are_none(wrong: int) -> None:
    with pytest.raises(UsageError, match=f"container {wrong}: an id is"):
        Choice(containers=(wrong,))
    with pytest.raises(UsageError, match=f"experiment {wrong}: an id is"):
        Choice(experiments=(wrong,))


def test_the_warehouses_answer_and_a_file_say_the_same(tmp_path: Path) -> None:
    answer = {"success": True, "id": 0, "start_row": 0, "num_rows": len(RECORDS), "msg": RECORDS}
    path = tmp_path / "list.json"
    path.write_text(json.dumps(answer), encoding="utf-8")
    assert read_experiments(path) == LISTED


def test_what_a_record_leaves_out_is_not_known() -> None:
    assert read_experiments(b'[{"id": 5, "specimen": null, "targeted_structure": {}}]') == (AllenExperiment(id=5),)
    lines = [{"transgenic_line_type_name": "driver", "name": "Camk2a-tTA"}, {"name": "x-Cre"}, "Cre"]
    record = {"id": 5, "specimen": {"donor": {"transgenic_lines": lines}}}
    assert read_experiments(json.dumps([record]).encode())[0].cre_line is None
    rude = {"id": 5, "targeted_structure": {"acronym": "\x1b[31mVISp"}}
    assert read_experiments(json.dumps([rude]).encode())[0].area is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "is not JSON"),
        (b"\xff\xfe\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}", "holds no array of 1 to"),
        (b"[]", "holds no array of 1 to"),
        (b'{"success": false, "msg": "error"}', "holds no array of 1 to"),
        (b"[5]", "record 0 is a int, expected an object"),
        (b'[{"id": 5}, {}]', "record 1 has no id"),
        (b'[{"id": true}]', "id is 'True', expected a whole number"),
        (b'[{"id": 5, "imaging_depth": "275"}]', "imaging_depth is '275', expected a whole number"),
        (b'[{"id": 5, "specimen": []}]', "specimen is a list, expected an object"),
        (b'[{"id": 5, "specimen": {"donor": {"transgenic_lines": 5}}}]', "transgenic_lines is a int"),
    ],
)
def test_a_list_that_is_none_is_refused(text: bytes, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_experiments(text)


def test_a_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read_experiments(tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from([*RECORDS[0], "donor", "transgenic_lines", "name", "msg"]), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_any_json_is_a_list_or_a_data_error(value: Any) -> None:
    try:
        found = read_experiments(json.dumps(value).encode())
    except DataError:
        return
    assert all(isinstance(one.id, int) for one in found)
