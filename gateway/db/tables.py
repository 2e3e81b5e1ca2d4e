"""The tables, as one MetaData; `migrations/` makes exactly these.

Ids are UUIDs as text and times UTC microseconds since 1970 as integers: both mean the same on
SQLite and PostgreSQL, compare as they should, and need no dialect-specific type.
"""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

batches = Table(
    "batches",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("caller", String(100), nullable=False),
    Column("tool", String(100), nullable=False),
    Column("total", Integer, nullable=False),
    Column("ended", Integer, nullable=False, server_default=text("0")),
    Column("webhook_url", Text),
    Column("idempotency_key", String(255)),
    Column("request_hash", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    UniqueConstraint("caller", "idempotency_key"),
    Index("ix_batches_caller_created_at_id", "caller", "created_at", "id"),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("tool", String(100), nullable=False),
    Column("variant", String(255), nullable=False),
    Column("caller", String(100), nullable=False),
    Column("status", String(16), nullable=False),
    Column("progress", Float, nullable=False, server_default=text("0")),
    Column("params", JSON, nullable=False),
    Column("call", JSON, nullable=False),
    Column("outcome", JSON),
    Column("error_code", String(100)),
    Column("error_message", Text),
    Column("error_kind", String(16)),
    # the number of its last event: taken by the update that changes the row, so that two writers
    # never number an event alike
    Column("events", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("deadline_at", BigInteger, nullable=False),
    Column("priority", Integer, nullable=False, server_default=text("0")),
    # how much work it is, in the tool's own units, and what was promised when it was taken
    Column("size", Float),
    Column("eta_seconds", Float),
    Column("webhook_url", Text),
    # no foreign key: SQLite would copy the whole table to add one
    Column("batch_id", String(36)),
    Column("batch_n", Integer),
    Index("ix_jobs_created_at_id", "created_at", "id"),
    Index("ix_jobs_caller_created_at_id", "caller", "created_at", "id"),
    Index("ix_jobs_batch_id_batch_n", "batch_id", "batch_n"),
    Index("ix_jobs_finished_at", "finished_at"),
    Index("ix_jobs_tool_variant_finished_at", "tool", "variant", "finished_at"),
)

runs = Table(
    "runs",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("stage", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("caller", String(100), nullable=False),
    Column("priority", Integer, nullable=False),
    # what placement looks at, beside the call kept with the job
    Column("workflow", String(100), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("models", JSON, nullable=False),
    Column("backend", String(100)),
    Column("reference", Text),
    Column("produced", JSON),
    # what it reads of the files its job's stage before it made: parameter to sources
    Column("inputs", JSON),
    Column("owner", String(36)),
    Column("epoch", Integer, nullable=False),
    Column("failures", Integer, nullable=False),
    Column("deaths", Integer, nullable=False),
    Column("executed", Boolean, nullable=False, server_default=false()),
    Column("cancel_pending", Boolean, nullable=False, server_default=false()),
    Column("waits_for", Text),
    # where it may be carried out, kinds or names of backends in order; null: as the settings say
    Column("places", JSON),
    # why it was given the place it has
    Column("choice", String(300)),
    Column("error_code", String(100)),
    Column("error_message", Text),
    Column("created_at", BigInteger, nullable=False),
    Column("not_before", BigInteger, nullable=False),
    Column("deadline_at", BigInteger, nullable=False),
    # by placement to its present owner: null again once a granted run has changed hands
    Column("granted_at", BigInteger),
    Column("started_at", BigInteger),
    Column("ended_at", BigInteger),
    UniqueConstraint("job_id", "stage", "attempt"),
    Index("ix_runs_state_caller", "state", "caller", "priority", "created_at", "id"),
    Index("ix_runs_caller_granted_at", "caller", "granted_at"),
)
_HAS_PLACE = text("state IN ('granted', 'started')")
Index(
    "ix_runs_under_way",
    runs.c.backend,
    sqlite_where=_HAS_PLACE,
    postgresql_where=_HAS_PLACE,
)
Index(
    "ix_runs_cancel_pending",
    runs.c.cancel_pending,
    sqlite_where=runs.c.cancel_pending,
    postgresql_where=runs.c.cancel_pending,
)

artifacts = Table(
    "artifacts",
    metadata,
    Column("job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("output", String(100), primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("key", Text, nullable=False),
    Column("filename", String(255), nullable=False),
    Column("media_type", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("width", Integer),
    Column("height", Integer),
    Column("frames", Integer),
    Column("duration_s", Float),
    Column("faces", Integer),
    # written before the file is deleted: what the row names as there is there
    Column("removed_at", BigInteger),
    Index("ix_artifacts_filename", "filename", unique=True),
)

job_events = Table(
    "job_events",
    metadata,
    Column("job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("n", Integer, primary_key=True),
    Column("type", String(32), nullable=False),
    Column("data", JSON, nullable=False),
    Column("at", BigInteger, nullable=False),
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("caller", String(100), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column(
        "job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("request_hash", String(64)),
    Column("created_at", BigInteger, nullable=False),
)

replicas = Table(
    "replicas",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("seen", BigInteger, nullable=False),
    # names of those it can reach: gateways may be told of different ones, in a deploy say
    Column("backends", JSON),
)

webhook_events = Table(
    "webhook_events",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("caller", String(100), nullable=False),
    Column("type", String(50), nullable=False),
    Column("url", Text, nullable=False),
    # who is asked, `name:port`: what is due elsewhere is found without looking at a dead one's
    Column("host", Text, nullable=False),
    Column("job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), index=True),
    Column("batch_id", String(36), ForeignKey("batches.id", ondelete="CASCADE"), index=True),
    Column("status", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    # when it is tried next; whoever takes it moves this past the time one try may last
    Column("next_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("delivered_at", BigInteger),
    Index("ix_webhook_events_caller_created_at_id", "caller", "created_at", "id"),
)
Index(
    "ix_webhook_events_due",
    webhook_events.c.next_at,
    sqlite_where=webhook_events.c.status == "pending",
    postgresql_where=webhook_events.c.status == "pending",
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column(
        "event_id",
        String(36),
        ForeignKey("webhook_events.id", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("n", Integer, primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("status_code", Integer),
    Column("error", String(200)),
    Column("duration_ms", Integer, nullable=False),
)

compatibility = Table(
    "compatibility",
    metadata,
    # the oldest code, by the newest migration it knows, that may work on these tables
    Column("oldest", String(32), primary_key=True),
)

trained_models = Table(
    "trained_models",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("name", String(200), nullable=False),
    Column("lora", String(255), nullable=False),
    Column("trigger_word", String(200)),
    Column("base_model", String(255), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("name"),
)

templates = Table(
    "templates",
    metadata,
    Column("id", String(36), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("trigger_keyword", String(200), nullable=False),
    Column("image_key", Text),
    Column("image_type", String(255)),
    Column("image_bytes", BigInteger),
    Column("image_sha256", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("ix_templates_created_at_id", "created_at", "id"),
)

styles = Table(
    "styles",
    metadata,
    # the `styleId` of calls
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("prompt", Text, nullable=False),
    Column("image_key", Text),
    Column("image_type", String(255)),
    Column("image_bytes", BigInteger),
    Column("image_sha256", String(64)),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
)

workflows = Table(
    "workflows",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("digest", String(64), nullable=False, index=True),
    Column("caller", String(100), nullable=False),
    Column("graph", JSON, nullable=False),
    Column("manifest", JSON, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # jobs of a removed one still find what they were
    Column("removed_at", BigInteger),
)

uploads = Table(
    "uploads",
    metadata,
    # a ULID: the `card_id` of media
    Column("id", String(26), primary_key=True),
    Column("caller", String(100), nullable=False),
    # media or file: the route it came by
    Column("kind", String(8), nullable=False),
    # waiting (its bytes are yet to come, straight into a slot) or ready
    Column("status", String(16), nullable=False),
    # what the caller calls it: for downloads alone
    Column("name", Text),
    Column("key", Text, nullable=False),
    Column("filename", String(255), nullable=False),
    Column("media_type", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64)),
    Column("width", Integer),
    Column("height", Integer),
    Column("frames", Integer),
    Column("duration_s", Float),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, index=True),
    Index("ix_uploads_filename", "filename", unique=True),
    Index("ix_uploads_caller_created_at_id", "caller", "created_at", "id"),
)

cards = Table(
    "cards",
    metadata,
    Column("caller", String(100), primary_key=True),
    # whatever the caller calls it
    Column("id", String(200), primary_key=True),
    # the latest job that makes this card's media
    Column(
        "job_id", String(36), ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, index=True
    ),
    Column("media_type", String(8), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

thumbnails = Table(
    "thumbnails",
    metadata,
    # key of the file it is made of: a result, an upload, a picture
    Column("source_key", Text, primary_key=True),
    # longest side asked for, in pixels
    Column("width", Integer, primary_key=True),
    Column("key", Text, nullable=False, index=True),
    Column("media_type", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
