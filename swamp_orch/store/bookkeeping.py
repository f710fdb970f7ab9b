"""Where swamp's own bookkeeping lives among the records: model types, model ids and record names.

Bookkeeping is records like all other data: queryable with `swamp data query`, with history. Attribute names are
camelCase, as users see them; wall instants are ISO 8601 with milliseconds and `Z`.
"""

import uuid
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final
from urllib.parse import quote

NAMESPACE: Final = uuid.UUID("6b0f1a52-6f0b-5d56-9d0c-0d7a3f5f6a11")

WORKER: Final = "swamp/worker"
ENROLLMENT_TOKEN: Final = "swamp/enrollment-token"  # noqa: S105 - a type name
STEP_LEASE: Final = "swamp/step-lease"
PENDING_DISPATCH: Final = "swamp/pending-dispatch"
WORKFLOW_RUN: Final = "swamp/workflow-run"
ACCESS: Final = "swamp/access"

INFRASTRUCTURE_TYPES: Final = frozenset(
    {WORKER, ENROLLMENT_TOKEN, STEP_LEASE, PENDING_DISPATCH, WORKFLOW_RUN, ACCESS}
)
"""Types no step may read or write."""

ONE_SHOT_TYPES: Final = frozenset({STEP_LEASE, PENDING_DISPATCH, WORKFLOW_RUN, ACCESS})
"""Their (model id, name) holds a uuid and is never written again once collected."""

LEASES_MODEL: Final = "leases"
PENDING_MODEL: Final = "pending"
ACCESS_MODEL: Final = "access"


def model_id(model_type: str, model_name: str) -> str:
    """The fixed id of a bookkeeping model; the same in every repository."""
    return str(uuid.uuid5(NAMESPACE, f"{model_type}/{model_name}"))


LEASES_ID: Final = model_id(STEP_LEASE, LEASES_MODEL)
PENDING_ID: Final = model_id(PENDING_DISPATCH, PENDING_MODEL)
ACCESS_ID: Final = model_id(ACCESS, ACCESS_MODEL)

TOKEN_RECORD: Final = "token-main"  # noqa: S105 - spec `token`, model name = token name
WORKER_RECORD: Final = "state-main"  # spec `state`, model name = `worker-<pool name>`
RUN_RECORD: Final = "run-main"  # spec `run`, model name = workflow name, model id = run id


def worker_model(name: str) -> str:
    return f"worker-{name}"


def lease_record(dispatch: str) -> str:
    """Spec `lease`."""
    return f"lease-{dispatch}"


def pending_record(queue_id: str) -> str:
    """Spec `dispatch`."""
    return f"pending-{queue_id}"


def report_record(report: str) -> str:
    """Spec `reporting`, in the run's model: how the making of a report of the run went."""
    return f"reporting-{quote(report, safe='').replace('.', '%2E')}"


def step_record(job: str, step: str) -> str:
    """Spec `step`, in the run's model. Job and step names are free text, so both are quoted."""
    return f"step-{quote(job, safe='').replace('.', '%2E')}.{quote(step, safe='').replace('.', '%2E')}"


@lru_cache(maxsize=4_096)  # a step's records name the same few instants again and again
def iso(wall_ms: int) -> str:
    """`2026-06-15T11:34:58.961Z`."""
    return f"{datetime.fromtimestamp(wall_ms // 1000, UTC).isoformat()[:19]}.{wall_ms % 1000:03d}Z"


def from_iso(text: str) -> int:
    """Milliseconds since the epoch; raises ValueError."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)
