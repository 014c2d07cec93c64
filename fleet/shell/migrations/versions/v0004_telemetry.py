"""Telemetry is kept in a database of its own."""

from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Drop what the other database has: what came, its sums, and how far it came in."""
    op.drop_table("telemetry")
    op.drop_table("totals")
    with op.batch_alter_table("devices") as devices:
        devices.drop_column("acked")


def downgrade() -> None:
    """Refuse: a store never goes back; restore a copy instead.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("a store never goes back; restore a copy instead")
