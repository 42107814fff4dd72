"""Alembic's way into the database: on the connection, and in the transaction, of whoever migrates."""

from alembic import context

from jobs.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True)
context.run_migrations()
