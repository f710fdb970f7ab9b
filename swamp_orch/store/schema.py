"""The SQLite layout: one wide `record` table in log order, and the names queries use for its columns.

Why it is as it is: rows are read far more often in order of `seq` and by model than in any other way, so content sits
last in its row (a scan that does not ask for it does not touch it) and the indexes carry `is_latest`, so that superseded
versions cost a query nothing. Changing `is_latest` rewrites one byte in place.

Two triggers keep what the short way of `writer.py` does not look at: a first version is only for a name that never was,
and what a new version supersedes is not the latest any more. (Both AFTER: a BEFORE trigger copies the whole row.)

`attributes` says how JSON conditions may be answered: `NONE` there are none, `EXACT` the content is inline JSON in the form
`json_content` writes, on which SQLite's JSON functions agree with `terms.py`; `LOOK` it is other JSON, inline or in a blob, and only
Python may judge. `reserved` keeps the numbers of names whose newest version was removed.
"""

from collections.abc import Mapping
from typing import Final

SCHEMA_VERSION: Final = 1
APPLICATION_ID: Final = 0x73776D70  # `swmp`
FILE_NAME: Final = "store.db"
BALLAST_NAME: Final = "ballast"
BLOBS_NAME: Final = "blobs"

NONE: Final = 0
EXACT: Final = 1
LOOK: Final = 2

RECORD_COLUMNS: Final = (
    "seq", "id", "model_type", "model_id", "model_name", "name", "version", "spec", "kind", "content_type", "lifetime",
    "keep", "streaming", "deleted", "is_latest", "size", "sha256", "created_ms", "owner_type", "owner_ref", "workflow_id",
    "workflow", "run", "job", "step", "dispatch", "fence", "source", "outcome", "attributes", "tags", "content",
)  # fmt: skip
"""In the order of the table."""

SCHEMA: Final = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('removals', '0'), ('seq', '0');
CREATE TABLE record (
  seq INTEGER PRIMARY KEY,
  id TEXT NOT NULL,
  model_type TEXT NOT NULL,
  model_id TEXT NOT NULL,
  model_name TEXT NOT NULL,
  name TEXT NOT NULL,
  version INTEGER NOT NULL,
  spec TEXT NOT NULL,
  kind TEXT NOT NULL,
  content_type TEXT NOT NULL,
  lifetime TEXT NOT NULL,
  keep INTEGER,
  streaming INTEGER NOT NULL,
  deleted INTEGER NOT NULL,
  is_latest INTEGER NOT NULL,
  size INTEGER NOT NULL,
  sha256 TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  owner_type TEXT NOT NULL,
  owner_ref TEXT NOT NULL,
  workflow_id TEXT NOT NULL,
  workflow TEXT NOT NULL,
  run TEXT NOT NULL,
  job TEXT NOT NULL,
  step TEXT NOT NULL,
  dispatch TEXT NOT NULL,
  fence INTEGER NOT NULL,
  source TEXT NOT NULL,
  outcome TEXT NOT NULL,
  attributes INTEGER NOT NULL,
  tags TEXT NOT NULL,
  content BLOB
);
CREATE UNIQUE INDEX record_id ON record (id);
CREATE UNIQUE INDEX record_version ON record (model_id, name, version);
CREATE INDEX record_model ON record (model_name, spec, is_latest);
CREATE INDEX record_type ON record (model_type, is_latest);
CREATE INDEX record_run ON record (run) WHERE run <> '';
CREATE INDEX record_blob ON record (sha256) WHERE content IS NULL;
CREATE TRIGGER record_new AFTER INSERT ON record WHEN NEW.version = 1 BEGIN
  SELECT RAISE(ABORT, 'not new')
  WHERE EXISTS (SELECT 1 FROM record WHERE model_id = NEW.model_id AND name = NEW.name AND version > 1)
    OR EXISTS (SELECT 1 FROM reserved WHERE model_id = NEW.model_id AND name = NEW.name);
END;
CREATE TRIGGER record_superseded AFTER INSERT ON record WHEN NEW.version > 1 BEGIN
  UPDATE record SET is_latest = 0 WHERE seq = (
    SELECT seq FROM record WHERE model_id = NEW.model_id AND name = NEW.name AND version < NEW.version
    ORDER BY version DESC LIMIT 1);
END;
CREATE TABLE reserved (
  model_id TEXT NOT NULL, name TEXT NOT NULL, version INTEGER NOT NULL, PRIMARY KEY (model_id, name)
) WITHOUT ROWID;
CREATE TABLE idempotency (
  key TEXT PRIMARY KEY,
  digest TEXT NOT NULL,
  scope TEXT NOT NULL,
  created_ms INTEGER NOT NULL,
  appended TEXT NOT NULL,
  answer BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX idempotency_scope ON idempotency (scope);
"""

FIELDS: Final[Mapping[str, str]] = {
    "id": "id",
    "name": "name",
    "version": "version",
    "isLatest": "is_latest",
    "isDeleted": "deleted",
    "createdAt": "created_ms",
    "modelName": "model_name",
    "modelType": "model_type",
    "modelId": "model_id",
    "specName": "spec",
    "dataType": "kind",
    "contentType": "content_type",
    "lifetime": "lifetime",
    "ownerType": "owner_type",
    "streaming": "streaming",
    "size": "size",
    "ownerRef": "owner_ref",
    "workflowId": "workflow_id",
    "workflowRunId": "run",
    "workflowName": "workflow",
    "jobName": "job",
    "stepName": "step",
    "dispatch": "dispatch",
    "source": "source",
    "outcome": "outcome",
    "sha256": "sha256",
}
"""Names of fields as queries know them, to columns."""
