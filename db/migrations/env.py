"""Runs migrations on the connection that ``db.session`` hands over, inside its transaction."""

from alembic import context

from db.models import Base
from db.session import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    version_table=VERSION_TABLE,
    # SQLite cannot alter most things in place: rebuild the table.
    render_as_batch=True,
    # SQLite rolls DDL back like anything else once BEGIN is really sent; Alembic assumes otherwise.
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
