"""The tables of the job store. `migrations/` makes them; a test holds both together."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={"ix": "ix_%(table_name)s_%(column_0_N_name)s", "uq": "uq_%(table_name)s_%(column_0_N_name)s"}
)

jobs = sa.Table(
    "jobs",
    metadata,
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
    sa.UniqueConstraint("key", "idempotency_key"),
    # Who is next, and how many wait.
    sa.Index(None, "state", "work", "priority", "key", "created_at"),
    # A caller's list, newest first.
    sa.Index(None, "key", "created_at"),
    # Leases that have run out.
    sa.Index(None, "state", "lease_until"),
    sa.Index(None, "batch_id"),
    sa.Index(None, "parent_id"),
    sa.Index(None, "key", "content_hash"),
)

results = sa.Table(
    "results",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("body", sa.Text, nullable=False),
)
"""One row a job: the database itself refuses a second result."""

events = sa.Table(
    "events",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)

shares = sa.Table(
    "shares",
    metadata,
    sa.Column("priority", sa.Integer, primary_key=True),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("ends", sa.Double, nullable=False),
)
"""Fair turns: where each key's last job ends in virtual time. The key "" holds the class's own time, and its count."""

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("due_at", sa.Double),
    sa.Column("status", sa.Integer),
    sa.Column("failure", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("delivered_at", sa.Double),
    sa.Index(None, "job_id"),
    sa.Index(None, "due_at"),
)
"""Webhooks to be sent: written with the end of the job itself, so that none is forgotten. *due_at* NULL: over."""

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("seen_at", sa.Double, nullable=False),
    sa.Column("facts", sa.JSON, nullable=False),
)
"""Who works on jobs, and what it says of its devices and plans."""

vocabularies = sa.Table(
    "vocabularies",
    metadata,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("words", sa.Text, nullable=False),
)
"""Words that each key's recordings are likely to hold, one a line."""

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("id", sa.String(12), primary_key=True),
    sa.Column("name", sa.String(48), nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("scopes", sa.String(64), nullable=False),
    sa.Column("priority", sa.Integer, nullable=False),
    sa.Column("max_requests", sa.Integer),
    sa.Column("max_audio_s_a_day", sa.Double),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
    sa.Column("revoked_at", sa.Double),
)
"""Keys that were made on the command line: SHA-256 digests of them, in hexadecimal, and what they open."""
