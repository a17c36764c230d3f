"""Records as the Allen warehouse writes them into ``ophys_experiments.json``."""

from __future__ import annotations

from typing import Any


def allen_record(
    number: int, *, container: int, session: str, cre: str, area: str, depth: int, failed: bool = False
) -> dict[str, Any]:
    """One experiment, with the keys that are read among those that are not."""
    lines = [
        {"name": "Camk2a-tTA", "transgenic_line_type_name": "driver"},
        {"name": cre, "transgenic_line_type_name": "driver"},
        {"name": "Ai93(TITL-GCaMP6f)", "transgenic_line_type_name": "reporter"},
    ]
    return {
        "id": number,
        "date_of_acquisition": "2016-02-04T10:25:24Z",
        "experiment_container_id": container,
        "fail_eye_tracking": True,
        "imaging_depth": depth,
        "stimulus_name": f"three_session_{session}",
        "experiment_container": {"id": container, "failed": failed},
        "targeted_structure": {"id": 385, "acronym": area},
        "specimen": {"id": 1, "name": f"{cre};Camk2a-tTA;Ai93-222426", "donor": {"age": {}, "transgenic_lines": lines}},
        "well_known_files": [],
    }
