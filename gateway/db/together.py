"""Rows of several tables, written in as few round trips as the database allows."""

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Executable, Insert, Table, bindparam, insert

from gateway.db.engine import Transaction


async def insert_together(
    transaction: Transaction, written: Mapping[Table, Mapping[str, Any]]
) -> None:
    """Insert one row into each table; what others refer to comes first.

    Each table always has the same columns. On PostgreSQL it is one statement.
    """
    if transaction.dialect == "postgresql":
        columns = tuple((table, tuple(row)) for table, row in written.items())
        values = {
            _name(table, column): value
            for table, row in written.items()
            for column, value in row.items()
        }
        await transaction.execute(_one_statement(columns), values)
        return
    for table, row in written.items():
        await transaction.execute(insert(table), row)


@cache
def _one_statement(columns: tuple[tuple[Table, tuple[str, ...]], ...]) -> Executable:
    # foreign keys are checked when the whole statement is done, so the order is of no importance
    *others, last = [_insert(table, names) for table, names in columns]
    return last.add_cte(*(each.cte(f"new_{each.table.name}") for each in others))


def _insert(table: Table, names: tuple[str, ...]) -> Insert:
    values = {n: bindparam(_name(table, n), type_=table.c[n].type) for n in names}
    return insert(table).values(values)


def _name(table: Table, column: str) -> str:
    return f"{table.name}_{column}"
