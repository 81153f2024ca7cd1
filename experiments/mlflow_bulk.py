"""Many writes to an sqlite tracking store in one transaction.

MLflow commits every call by itself, which on sqlite is a flush of the disk each, some seven of them per run. Here its own store
does the same work inside one transaction: nothing of a batch is there until all of it is, and a batch costs one flush.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

PRAGMAS = ("foreign_keys = ON", "busy_timeout = 20000", "case_sensitive_like = true")
"""As MLflow sets them in each of its sessions."""


def sqlite_store(client: MlflowClient) -> Any | None:
    """The client's store if it writes to sqlite itself, else None: of a server, or of an MLflow that keeps it elsewhere."""
    store = getattr(getattr(client, "_tracking_client", None), "store", None)
    has_all = all(hasattr(store, name) for name in ("engine", "ManagedSessionMaker"))
    return store if has_all and getattr(store, "db_type", None) == "sqlite" else None


@contextlib.contextmanager
def one_transaction(store: Any | None) -> Iterator[None]:
    """Everything that is written to ``store`` inside is there after it, or none of it. Does nothing without a store.

    Others wait meanwhile (MLflow's own sessions up to 20 s), so do no slow work inside.
    """
    if store is None:
        yield
        return
    from sqlalchemy.orm import sessionmaker

    makes = store.ManagedSessionMaker
    with store.engine.connect() as connection:
        for pragma in PRAGMAS:
            connection.exec_driver_sql(f"PRAGMA {pragma}")
        connection.commit()
        with connection.begin():
            sessions = sessionmaker(bind=connection, join_transaction_mode="rollback_only")

            @contextlib.contextmanager
            def joined(read_only: bool = True) -> Iterator[Any]:
                with sessions() as session:
                    yield session
                    session.commit()

            store.ManagedSessionMaker = joined
            store.get_experiment = functools.cache(store.get_experiment)  # which every new run looks up
            try:
                yield
            finally:
                store.ManagedSessionMaker = makes
                del store.get_experiment
