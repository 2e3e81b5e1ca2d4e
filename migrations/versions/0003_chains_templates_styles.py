"""Jobs of several stages, typed files, templates, styles and callers' own workflows."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _picture() -> list[sa.Column[object]]:
    return [
        sa.Column("image_key", sa.Text(), nullable=True),
        sa.Column("image_type", sa.String(length=255), nullable=True),
        sa.Column("image_bytes", sa.BigInteger(), nullable=True),
        sa.Column("image_sha256", sa.String(length=64), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
    ]


def upgrade() -> None:
    op.create_table(
        "templates",
        sa.Column("id", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        sa.Column("trigger_keyword", sa.String(length=200), nullable=False),
        *_picture(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_templates")),
    )
    op.create_index("ix_templates_created_at_id", "templates", ["created_at", "id"])
    op.create_table(
        "styles",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("prompt", sa.Text(), nullable=False),
        *_picture(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_styles")),
    )
    op.create_table(
        "workflows",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("caller", sa.String(length=100), nullable=False),
        sa.Column("graph", sa.JSON(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("name", "version", name=op.f("pk_workflows")),
    )
    op.create_index(op.f("ix_workflows_digest"), "workflows", ["digest"])
    # without batch mode: a column that may be null is added in place
    op.add_column("runs", sa.Column("inputs", sa.JSON(), nullable=True))
    op.add_column("artifacts", sa.Column("duration_s", sa.Float(), nullable=True))
    op.add_column("artifacts", sa.Column("faces", sa.Integer(), nullable=True))
    # the code before does not know that a job goes on after its first stage: it would complete it
    op.execute("UPDATE compatibility SET oldest = '0003'")


def downgrade() -> None:
    op.execute("UPDATE compatibility SET oldest = '0001'")
    with op.batch_alter_table("artifacts", schema=None) as batch_op:
        batch_op.drop_column("faces")
        batch_op.drop_column("duration_s")
    with op.batch_alter_table("runs", schema=None) as batch_op:
        batch_op.drop_column("inputs")
    op.drop_index(op.f("ix_workflows_digest"), table_name="workflows")
    op.drop_table("workflows")
    op.drop_table("styles")
    op.drop_index("ix_templates_created_at_id", table_name="templates")
    op.drop_table("templates")
