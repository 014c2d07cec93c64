"""How considerately a device is to fetch, beside what it should run."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column; orders of before ask for nothing."""
    op.add_column("assignments", sa.Column("manners", sa.LargeBinary, nullable=True))


def downgrade() -> None:
    """Refuse: a store never goes back; restore a copy instead.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("a store never goes back; restore a copy instead")
