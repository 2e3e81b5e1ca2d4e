"""The only importer of SQLAlchemy: tables, connections and one repository a noun."""

from gateway.db.engine import (
    AlreadyThere,
    Database,
    DatabaseUnavailable,
    EngineFactory,
    JobChange,
    Transaction,
)
from gateway.db.folder_lock import FolderInUse, FolderLock, SoleOwnership
from gateway.db.notices import Notice
from gateway.db.records import Row
from gateway.db.refusals import DatabaseRefused
from gateway.db.schema import SchemaOutdated, migrate

__all__ = [
    "AlreadyThere",
    "Database",
    "DatabaseRefused",
    "DatabaseUnavailable",
    "EngineFactory",
    "FolderInUse",
    "FolderLock",
    "JobChange",
    "Notice",
    "Row",
    "SchemaOutdated",
    "SoleOwnership",
    "Transaction",
    "migrate",
]
