"""Where a run may be carried out, and why it is where it is."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("runs", sa.Column("places", sa.JSON(), nullable=True))
    op.add_column("runs", sa.Column("choice", sa.String(length=300), nullable=True))


def downgrade() -> None:
    op.drop_column("runs", "choice")
    op.drop_column("runs", "places")
