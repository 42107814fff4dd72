"""Jobs, their results, events, webhooks and fair turns; and the workers."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("work", sa.String(16), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("source", sa.JSON, nullable=False),
        sa.Column("options", sa.JSON, nullable=False),
        sa.Column("size", sa.Double),
        sa.Column("attended", sa.Boolean, nullable=False),
        sa.Column("reuse", sa.Boolean, nullable=False),
        sa.Column("callback_url", sa.Text),
        sa.Column("idempotency_key", sa.String(255)),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("batch_id", sa.String(32)),
        sa.Column("parent_id", sa.String(32)),
        sa.Column("not_for", sa.String(64)),
        sa.Column("stage", sa.String(16)),
        sa.Column("stage_done", sa.Double),
        sa.Column("done", sa.Double, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("deaths", sa.Integer, nullable=False),
        sa.Column("owner", sa.String(64)),
        sa.Column("lease_until", sa.Double),
        sa.Column("cancelling", sa.Boolean, nullable=False),
        sa.Column("content_hash", sa.String(64)),
        sa.Column("options_hash", sa.String(64)),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("sent_at", sa.Double),
        sa.Column("started_at", sa.Double),
        sa.Column("finished_at", sa.Double),
        sa.Column("error", sa.JSON),
        sa.Column("timings", sa.JSON, nullable=False),
        sa.UniqueConstraint("key", "idempotency_key", name="uq_jobs_key_idempotency_key"),
    )
    for columns in (
        ["state", "work", "priority", "key", "created_at"],
        ["key", "created_at"],
        ["state", "lease_until"],
        ["batch_id"],
        ["parent_id"],
        ["key", "content_hash"],
    ):
        op.create_index(f"ix_jobs_{'_'.join(columns)}", "jobs", columns)
    op.create_table(
        "results",
        _job_id(primary_key=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
    )
    op.create_table(
        "events",
        _job_id(primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
    )
    op.create_table(
        "shares",
        sa.Column("priority", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("ends", sa.Double, nullable=False),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", sa.String(32), primary_key=True),
        _job_id(nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due_at", sa.Double),
        sa.Column("status", sa.Integer),
        sa.Column("failure", sa.Text),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("delivered_at", sa.Double),
    )
    op.create_index("ix_deliveries_job_id", "deliveries", ["job_id"])
    op.create_index("ix_deliveries_due_at", "deliveries", ["due_at"])
    op.create_table(
        "workers",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("seen_at", sa.Double, nullable=False),
        sa.Column("facts", sa.JSON, nullable=False),
    )


def _job_id(**options: Any) -> sa.Column[str]:
    return sa.Column("job_id", sa.String(32), sa.ForeignKey("jobs.id", ondelete="CASCADE"), **options)


def downgrade() -> None:
    for table in ("workers", "deliveries", "shares", "events", "results", "jobs"):
        op.drop_table(table)
