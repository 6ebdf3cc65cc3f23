"""How often a run was claimed and its supervisor gone before the run began."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Nobody counted so far, so all begin at 0."""
    op.add_column("runs", sa.Column("abandoned_claims", sa.Integer(), nullable=False, server_default="0"))
