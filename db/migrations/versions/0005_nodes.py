"""Nodes with their devices, and what a run asks for of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Devices are what a supervisor saw last and it stores them anew at its start, so none are carried over."""
    op.drop_table("devices")
    op.create_table(
        "nodes",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("is_head", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("versions", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("seen_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_nodes"),
    )
    op.create_table(
        "devices",
        sa.Column("node", sa.String(), nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("dtypes", sa.JSON(), nullable=False),
        sa.Column("driver", sa.String(), nullable=True),
        sa.ForeignKeyConstraint(["node"], ["nodes.name"], name="fk_devices_node_nodes", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("node", "id", name="pk_devices"),
    )
    op.add_column("runs", sa.Column("node", sa.String(), nullable=True))
    op.add_column("runs", sa.Column("device_type", sa.String(), nullable=True))
