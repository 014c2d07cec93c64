"""Alerts, silences, what was done about them, and releases in quarantine."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add one table for values that are read and written whole."""
    op.create_table(
        "alert_values",
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )


def downgrade() -> None:
    """Refuse: a store never goes back; restore a copy instead.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("a store never goes back; restore a copy instead")
