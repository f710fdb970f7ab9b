"""Connections to the store file: how each is opened, and the few that read.

Rules: a reader has a connection to itself for as long as it reads, so a stream shows one instant and nobody else's reads are
held back in time by it; an answer that fits one page lets go of its connection before the first row is handed out.
Reading connections cannot write. Knows nothing of what is asked.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from swamp_orch.store.blobs import BlobFolder
from swamp_orch.store.errors import translated
from swamp_orch.store.interface import Term
from swamp_orch.store.selection import Judge
from swamp_proto.errors import Broken
from swamp_proto.limits import QUERY_PAGE, READ_CONNECTIONS_KEPT, STORE_BUSY_S


def connect(file: Path) -> sqlite3.Connection:
    """A connection with every setting that durability and speed depend on. Raises what `translated` makes of it."""
    try:
        db = sqlite3.connect(
            f"file:{quote(str(file))}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=STORE_BUSY_S,
            cached_statements=256,
            detect_types=sqlite3.PARSE_COLNAMES,
        )
        db.execute("PRAGMA synchronous = FULL")
    except sqlite3.Error as error:
        raise translated(error, file) from error
    return db


class Readers:
    """Read connections: one per reader at a time, a few kept."""

    def __init__(self, file: Path, blobs: BlobFolder) -> None:
        self._file = file
        self._blobs = blobs
        self._idle: list[tuple[sqlite3.Connection, Judge]] = []
        self._closed = False

    def rows(self, sql: str, parameters: Sequence[Any]) -> list[Any]:
        """A few rows at once; none for parameters no row can have."""
        db, judge = self._take()
        try:
            found = db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            db.close()
            raise translated(error, self._file) from error
        except (OverflowError, UnicodeEncodeError):
            found = []
        self._give_back(db, judge)
        return found

    def stream(
        self, sql: str, parameters: Sequence[Any], terms: tuple[Term, ...]
    ) -> Iterator[tuple[Any, ...]]:
        """Rows as they are asked for, all of one instant; a short answer lets go of its connection at once."""
        db, judge = self._take()
        whole = False
        try:
            judge.ask(terms)
            cursor = db.execute(sql, parameters)
            while True:
                rows = cursor.fetchmany(QUERY_PAGE)
                if len(rows) < QUERY_PAGE:
                    whole = True
                    self._give_back(db, judge)
                    yield from rows
                    return
                yield from rows
        except sqlite3.Error as error:
            raise judge.error or translated(error, self._file) from error
        finally:
            if not whole:
                db.close()

    def _take(self) -> tuple[sqlite3.Connection, Judge]:
        if self._closed:
            raise Broken("the store is closed")
        try:
            return self._idle.pop()
        except IndexError:
            db = connect(self._file)
        try:
            db.execute("PRAGMA query_only = ON")
            return db, Judge(db, self._blobs.read)
        except sqlite3.Error as error:
            db.close()
            raise translated(error, self._file) from error

    def _give_back(self, db: sqlite3.Connection, judge: Judge) -> None:
        if self._closed or len(self._idle) >= READ_CONNECTIONS_KEPT:
            db.close()
        else:
            self._idle.append((db, judge))

    def close(self) -> None:
        self._closed = True
        while self._idle:
            self._idle.pop()[0].close()
