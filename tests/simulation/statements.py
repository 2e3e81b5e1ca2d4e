"""Compiled SQL carried out on sqlite3 itself, without SQLAlchemy's execution around it.

The statements are the program's own, compiled by SQLAlchemy's SQLite dialect. To bind values and to
read rows is done here: that costs a tenth of what connections, contexts and results cost there.
"""

# SQLAlchemy has no public names for what its execution does with a compiled statement
# pyright: reportPrivateUsage=false

import json
import sqlite3
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from sqlalchemy import Executable
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.sql.compiler import SQLCompiler

Row = dict[str, Any]
Values = Mapping[str, Any]
Processor = Callable[[Any], Any]
Layout = tuple[str, list[tuple[str, str, int, Processor | None]]]
"""SQL, and for each of its places: name there, key of the caller, place in a list, processor."""

DIALECT = SQLiteDialect_pysqlite(json_serializer=json.dumps)
# what the dialect would learn from its first connection
DIALECT.server_version_info = sqlite3.sqlite_version_info
DIALECT.insert_returning = DIALECT.update_returning = DIALECT.delete_returning = True
_compiled: dict[Any, "Compiled"] = {}
_REMEMBERED = "_simulated"
"""Name under which a statement that is used again and again keeps what was made of it."""


class Result:
    """What the program reads of a statement's result."""

    __slots__ = ("_rows", "rowcount")

    def __init__(self, rows: list[Row], rowcount: int) -> None:
        self._rows = rows
        self.rowcount = rowcount

    def mappings(self) -> Self:
        return self

    def all(self) -> list[Row]:
        return self._rows

    def first(self) -> Row | None:
        return self._rows[0] if self._rows else None

    def scalar(self) -> Any:
        return next(iter(self._rows[0].values())) if self._rows else None

    def scalar_one(self) -> Any:
        [row] = self._rows
        [value] = row.values()
        return value


class Compiled:
    """A statement's SQL, and how its values are laid out and its rows are read."""

    def __init__(self, compiler: SQLCompiler) -> None:
        if compiler.insert_prefetch or compiler.update_prefetch:
            raise NotImplementedError("defaults made in Python")
        self.compiler = compiler
        self._layouts: dict[tuple[int, ...], Layout] = {}
        self._lists = [
            (bind.key, name) for bind, name in compiler.bind_names.items() if bind.expanding
        ]
        self._keys = {name: bind.key for bind, name in compiler.bind_names.items()}
        self.columns = [
            (entry.keyname, entry.type._cached_result_processor(DIALECT, None))
            for entry in compiler._result_columns
        ]
        self._names = [name for name, _ in self.columns]
        self._plain = all(processor is None for _, processor in self.columns)

    def bind(self, written: Values, values: Values) -> tuple[str, list[Any]]:
        """SQL and positional values, lists spread: `values`, else what the statement has written.

        `values` go by their keys, `written` by the names they have in the SQL.
        """
        lengths: tuple[int, ...] = ()
        if self._lists:
            lists = [values[key] if key in values else written[name] for key, name in self._lists]
            lengths = tuple(map(len, lists))
        layout = self._layouts.get(lengths)
        if layout is None:
            layout = self._layouts[lengths] = self._layout(written, values)
        sql, places = layout
        bound: list[Any] = []
        for name, key, index, processor in places:
            value = values[key] if key in values else written[name]
            if index >= 0:
                value = value[index]
            bound.append(value if processor is None else processor(value))
        return sql, bound

    def _layout(self, written: Values, values: Values) -> Layout:
        filled = dict(written)
        filled.update({name: values[key] for name, key in self._keys.items() if key in values})
        state = self.compiler._process_parameters_for_postcompile(filled)
        spread = {
            element: (name, index)
            for name, elements in state.parameter_expansion.items()
            for index, element in enumerate(elements)
        }
        processors: Mapping[str, Any] = {**self.compiler._bind_processors, **state.processors}
        places: list[tuple[str, str, int, Processor | None]] = []
        for place in state.positiontup or ():
            name, index = spread.get(place, (place, -1))
            places.append((name, self._keys[name], index, processors.get(place)))
        return state.statement, places

    def rows(self, fetched: list[tuple[Any, ...]]) -> list[Row]:
        """Rows as the program reads them."""
        if self._plain:
            return [dict(zip(self._names, row, strict=True)) for row in fetched]
        return [
            {
                name: value if processor is None else processor(value)
                for (name, processor), value in zip(self.columns, row, strict=True)
            }
            for row in fetched
        ]


class Prepared:
    """A statement ready to be carried out: its compiled form and the values written in it."""

    __slots__ = ("_compiled", "_written")

    def __init__(self, statement: Any, keys: tuple[str, ...]) -> None:
        cache_key = statement._generate_cache_key()
        known = (cache_key.key, keys)
        compiled = _compiled.get(known)
        if compiled is None:
            compiler = statement.compile(
                dialect=DIALECT, column_keys=list(keys), cache_key=cache_key
            )
            compiled = _compiled[known] = Compiled(compiler)
        self._compiled = compiled
        self._written = compiled.compiler.construct_params(
            None, extracted_parameters=cache_key.bindparams, _check=False
        )

    def run(self, connection: sqlite3.Connection, values: Values) -> Result:
        """Carry it out once."""
        compiled = self._compiled
        sql, parameters = compiled.bind(self._written, values)
        cursor = connection.execute(sql, parameters)
        fetched = cursor.fetchall()
        return Result(compiled.rows(fetched) if fetched else [], cursor.rowcount)


def execute(
    connection: sqlite3.Connection,
    statement: Executable,
    values: Values | Sequence[Values] | None = None,
) -> Result:
    """Carry out a statement, once for each set of values."""
    if values is None or isinstance(values, Mapping):
        values = values or {}
        return _prepared(statement, tuple(sorted(values))).run(connection, values)
    result = Result([], 0)
    for one in values:
        result = _prepared(statement, tuple(sorted(one))).run(connection, one)
    return result


def _prepared(statement: Executable, keys: tuple[str, ...]) -> Prepared:
    # a statement made from another one takes over its attributes: those are not its own
    kept: tuple[Any, dict[tuple[str, ...], Prepared]] | None = vars(statement).get(_REMEMBERED)
    if kept is None or kept[0]() is not statement:
        kept = (weakref.ref(statement), {})
        vars(statement)[_REMEMBERED] = kept
    remembered = kept[1]
    prepared = remembered.get(keys)
    if prepared is None:
        prepared = remembered[keys] = Prepared(statement, keys)
    return prepared
