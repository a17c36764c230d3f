"""What `quantformer reproduce` can be asked for; light, so that a typing error is told at once."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from quantformer.errors import UsageError

#: What can be asked for, in the order of the report.
TABLES = ("ours", "table1", "table2", "table3", "table4", "tableA2", "tableA3", "tableA4", "figures")
ALL = "all"


def asked_tables(names: Sequence[str]) -> tuple[str, ...]:
    """The tables that a command line names, in the report's order; `ALL` is every one.

    Raises:
        UsageError: there is no such table.
    """
    for name in names:
        if name != ALL and name not in TABLES:
            near = difflib.get_close_matches(name, (*TABLES, ALL), n=1, cutoff=0.0)[0]
            raise UsageError(f"there is no table {name!r}; the nearest is {near!r} (there are {', '.join(TABLES)}, {ALL})")
    return tuple(name for name in TABLES if ALL in names or name in names)
