"""Every bound in the system, in one place, with the assertions that relate them.

Durations end in `_s` (seconds), bounds in `_MAX`, sizes are bytes. What scales with the grace window is a
function of it, so that tests can run the whole system with a grace of a few seconds and the relations still
hold (SEMANTICS §2).
"""

from typing import Final

import attrs

from swamp_proto.ids import NAME_LENGTH_MAX

KIB: Final = 1024
MIB: Final = 1024 * KIB

# ── the control link ────────────────────────────────────────────────────────────────────────────────────────
CONTROL_FRAME_MAX: Final = 4 * MIB  # one WebSocket message
FRAME_DEPTH_MAX: Final = 64  # nesting of a frame
FRAME_ITEMS_MAX: Final = 100_000  # items of one array or map
BUNDLE_FRAMES_MAX: Final = 64  # frames in one WebSocket message
BUNDLE_BYTES_MAX: Final = 256 * KIB  # no further frame is added to a message of this size
OUTBOX_FRAMES_MAX: Final = 4_096  # frames waiting for one socket; more closes it
ENROLL_DEADLINE_S: Final = 10.0  # receipt of the enroll frame on a new socket
UNAUTHENTICATED_SOCKETS_MAX: Final = (
    1_024  # over all addresses; one too many, and the one that waited longest makes room
)
UNAUTHENTICATED_SOCKETS_PER_ADDRESS_MAX: Final = 512  # a site behind one address may come back all at once
REFUSALS_DELAYED_PER_ADDRESS_MAX: Final = 64  # one too many, and the oldest gets its answer at once
LABELS_MAX: Final = 64
LABEL_LENGTH_MAX: Final = 256
CAPACITY_MAX: Final = 1_024
HELD_DISPATCHES_MAX: Final = 2 * CAPACITY_MAX
ENROLL_FRAME_MAX: Final = 512 * KIB
CLOSE_HANDSHAKE_S: Final = 2.0  # for the peer to answer a WebSocket close
TOKEN_LENGTH_MAX: Final = 256  # characters of `<name>.<secret>`: 64 + 1 + 64, and room
VERSION_LENGTH_MAX: Final = 64  # characters of a swamp version
REQUESTS_OUTSTANDING_MAX: Final = 4 * CAPACITY_MAX  # unanswered requests per direction of one link

# ── grace and liveness ──────────────────────────────────────────────────────────────────────────────────────
GRACE_S_DEFAULT: Final = 60.0
GRACE_S_MIN: Final = 1.0
GRACE_S_MAX: Final = 24 * 3600.0


@attrs.frozen
class Tempo:
    """All instants that scale with the grace window G (`--grace`), in seconds. See SEMANTICS §2."""

    grace_s: float = GRACE_S_DEFAULT

    @property
    def heartbeat_s(self) -> float:
        """Between two heartbeats."""
        return min(10.0, self.grace_s / 12)

    @property
    def silence_s(self) -> float:
        """Without any frame for this long, a link is over."""
        return 3 * self.heartbeat_s

    @property
    def term_s(self) -> float:
        """After the last answered heartbeat was sent: the holder sends TERM to what it runs."""
        return self.grace_s * 3 / 4

    @property
    def kill_s(self) -> float:
        """After the last answered heartbeat was sent: the holder sends KILL."""
        return self.grace_s * 7 / 8

    @property
    def redial_s_max(self) -> float:
        """Ceiling of back-off and of a connect attempt while steps are held."""
        return self.grace_s / 12

    @property
    def away_s(self) -> float:
        """A holder that only lost its socket is back within two redials; who asks for an end waits no longer."""
        return 2 * self.redial_s_max

    def check(self) -> None:
        """The holder gives up first, and placing again waits for it."""
        assert self.heartbeat_s < self.silence_s < self.term_s < self.kill_s < self.grace_s
        assert self.redial_s_max <= self.grace_s / 12
        assert self.away_s < self.grace_s


for _grace_s in (GRACE_S_MIN, 4.0, GRACE_S_DEFAULT, GRACE_S_MAX):
    Tempo(_grace_s).check()

RECONNECT_S_MIN: Final = 0.5
RECONNECT_S_MAX: Final = 30.0
SESSION_CREDENTIAL_S: Final = 15 * 60.0
SESSION_REFRESH_FRACTION: Final = 2 / 3
TOKEN_TICK_S: Final = 1.0  # wall-clock deadlines are re-derived at least this often
STALL_S: Final = 5.0  # a loop stall longer than this shifts deadlines by the stall

# ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────
CANCEL_TERM_S: Final = 10.0  # TERM -> KILL
CANCEL_WAIT_S: Final = 30.0  # the orchestrator's wait for an answer to a cancel
STUCK_S: Final = 30.0  # a group not empty this long after KILL makes its slot stuck
BACKGROUND_GRACE_S: Final = 0.5  # pipes may stay open this long after the shell itself has ended
LOSSES_MAX: Final = 3  # holder deaths per step
GRACE_RESETS_MAX: Final = 3  # boots that may extend one lease
CAPTURE_MAX: Final = 1 * MIB  # captured stdout, and stderr, in a result; as encoded
CAPTURE_TAIL: Final = 256 * KIB  # of CAPTURE_MAX, kept from the end
LINE_MAX: Final = 64 * KIB  # a longer output line is split
LOG_BLOCKS_MAX: Final = 512  # of one `dispatch.log`
LOG_BATCH_LINES_MAX: Final = 16_384  # the same, lines of all its blocks
LOG_BATCH_BYTES_MAX: Final = 256 * KIB
LOG_WAITING_LINES_MAX: Final = 256  # behind a piece of a long line that may go on, at the orchestrator
LOG_WAITING_BYTES_MAX: Final = 2 * LINE_MAX  # the same, of their text
LOG_NOTED_LINES: Final = 16_384  # received and not noted: the orchestrator notes at the latest here, or at
LOG_NOTED_BYTES: Final = 256 * KIB
LOG_WINDOW_LINES: Final = 65_536  # sent and not noted, of one dispatch: the worker waits for a note
LOG_WINDOW_BYTES: Final = 512 * KIB
LOG_FRAME_LINES: Final = (
    8_192  # what a worker puts into one frame: whatever else is to be said waits behind it
)
LOG_FRAME_BYTES: Final = 96 * KIB
LOG_SPOOL_MAX: Final = 256 * MIB  # per worker
COMPLETION_OUTPUTS_MAX: Final = 3 * MIB  # outputs in one completion frame; larger ones are staged
SHELL_VALUE_MAX: Final = 100 * KIB  # one expression value handed to a shell
SHELL_VALUES_MAX: Final = 1 * MIB  # all of them for one shell text; the system's own limit is about 2 MiB

# ── store ───────────────────────────────────────────────────────────────────────────────────────────────────
INLINE_CONTENT_MAX: Final = 32 * KIB  # larger content becomes a blob file
DATA_BODY_MAX: Final = 10 * 1024 * MIB
BALLAST_BYTES: Final = 8 * MIB
EXPORT_MAX: Final = 64 * MIB  # one record in one answer
LOG_ANSWER_LINES: Final = 500_000  # of logs in one answer
ATTRIBUTES_MAX: Final = 4 * MIB  # larger JSON content has no queryable attributes
BLOB_ORPHAN_KEPT_S: Final = 48 * 3600.0  # a staged blob no row names yet is kept this long
STORE_RETRY_S: Final = 1.0  # between tries of what must be recorded, while the disk is full
STORE_BUSY_S: Final = 30.0  # wait for another process that is writing
GROUP_COMMIT_MAX: Final = 256  # batches in one transaction
# The log is folded into the store file in the background from this length on (16 MiB): rarely enough for the 99th
# percentile, often enough that it is reused in place, which is cheaper to sync than a file that grows.
WAL_CHECKPOINT_PAGES: Final = 4_000
READ_CONNECTIONS_KEPT: Final = 4
BATCH_RECORDS_MAX: Final = 1_024
QUERY_PAGE: Final = 1_000
BOOKKEEPING_VERSIONS_KEPT: Final = 20
BOOKKEEPING_ENDED_KEPT_S: Final = 7 * 24 * 3600.0

# ── steps at work: capabilities, data plane, runners, bundles ────────────────────────────────────────────────
INLINE_WRITE_MAX: Final = 1 * MIB  # content of one record inside a write; larger content is uploaded before
WRITE_BODY_MAX: Final = 4 * MIB  # one write request, all its records
WRITE_RECORDS_MAX: Final = 1_000  # of one write; the lease's own record commits with the first
RESOURCE_MAX: Final = (
    16 * MIB
)  # one resource (JSON that is checked against its schema); larger things are files
RECORD_NAME_MAX: Final = 256  # characters
RECORD_TAGS_MAX: Final = 64  # of one record, beside swamp's own
TAG_LENGTH_MAX: Final = 1 * KIB  # characters of a tag's key, and of its value
UPLOAD_CHUNK: Final = 64 * MIB  # one PATCH of an upload
UPLOAD_SYNC: Final = (
    8 * MIB
)  # of an upload are made safe at once; an orchestrator that dies repeats at most twice as many
UPLOAD_CACHED_MAX: Final = 64 * MIB  # what is safe of a larger upload leaves the page cache
UPLOADS_PER_DISPATCH_MAX: Final = 64  # open at the same time
CALLS_PER_DISPATCH_MAX: Final = 64  # unanswered at the same time
CALLS_PER_LINK_MAX: Final = CAPACITY_MAX  # unanswered on one link, of all dispatches together
CALL_REST_S_MIN: Final = 0.2  # a call that was put off is sent again after this, at most, the first time
CALL_REST_S_MAX: Final = 5.0
CALL_VALUE_MAX: Final = 3 * MIB  # what one capability call gives
QUERY_ROWS_MAX: Final = 10_000  # of one query by a step
RUN_MODEL_CALLS_MAX: Final = 100  # of one dispatch
FOLLOW_UPS_MAX: Final = 100  # of one dispatch, one after another
REPORT_S: Final = 60.0  # for the reports after a method together; for one of a run
REPORT_SHOWN_MAX: Final = 256 * KIB  # of each form of a report, at the end of a run
RUNNER_FRAME_MAX: Final = 4 * MIB  # one message between executor and runner
HTTP_BODY_KEPT_MAX: Final = (
    256 * KIB
)  # of an answer's body in the result of http/request; the artefact has all of it
FILE_READ_KEPT_MAX: Final = 256 * KIB  # of an artefact in the result of file/read
BUNDLE_FILE_MAX: Final = 64 * MIB  # a bundle, packed
BUNDLE_UNPACKED_MAX: Final = 256 * MIB
BUNDLE_ENTRIES_MAX: Final = 10_000
BUNDLE_CACHE_MAX: Final = 1024 * MIB  # on a worker
BUNDLE_NAME_MAX: Final = 1_024  # bytes of a path inside a bundle
ENVIRONMENT_CACHE_MAX: Final = 4 * 1024 * MIB  # installed dependencies, on a worker
ENVIRONMENT_INSTALL_S: Final = 600.0  # for one installation
ENVIRONMENT_OUTPUT_MAX: Final = 256 * KIB  # what an installation may say in a step's log
REQUIREMENTS_MAX: Final = 1 * MIB  # a requirements.txt
DATA_CONNECTIONS_MAX: Final = 32  # of one worker to the data plane
DATA_CONNECT_S: Final = 10.0
DATA_TAKE_S: Final = (
    15.0  # without the peer taking a byte: it has ended, and somebody on the way keeps that to himself
)
DATA_STRANGE_MAX: Final = (
    10  # answers of 408, 429 or 5xx that no data plane gives, in a row: then the step hears of it
)
DATA_ANSWER_S: Final = 60.0  # for an answer, after the request is sent whole
DATA_RETRY_S_MIN: Final = 0.2  # full jitter, doubling, up to
DATA_RETRY_S_MAX: Final = 5.0
BUNDLE_UNUSED_KEPT_S: Final = 24 * 3600.0  # of a bundle that is not current and that no active run names
DESCRIBE_S: Final = 30.0  # importing the code of one unit
DESCRIBE_MEMORY_MAX: Final = 1024 * MIB
DESCRIBE_OUTPUT_MAX: Final = 4 * MIB
DESCRIBE_AGAIN_S: Final = 10.0  # a unit that did not import is asked again after that, unchanged

# ── definition files ────────────────────────────────────────────────────────────────────────────────────────
DEFINITION_BYTES_MAX: Final = 4 * MIB  # one YAML file
DEFINITION_DEPTH_MAX: Final = 64  # nesting of one
DEFINITIONS_CACHED_MAX: Final = 4_096  # parsed files kept in memory
IDENTIFIER_PREFIX_MIN: Final = 3  # characters of an id that may stand for the whole

# ── vaults ──────────────────────────────────────────────────────────────────────────────────────────────────
VAULT_KEY_LENGTH_MAX: Final = 200  # characters of a secret's key
VAULT_SECRET_MAX: Final = 1 * MIB  # one secret, as UTF-8

# ── requests ────────────────────────────────────────────────────────────────────────────────────────────────
CLIENT_BODY_MAX: Final = 8 * MIB
PREDICATE_LENGTH_MAX: Final = 16 * KIB
CEL_RANGE_MAX: Final = 10_000  # of lists.range in an expression
EVENT_BUFFER_MAX: Final = 10_000  # events of a run kept for clients that attach
EVENT_BUFFER_BYTES: Final = 8 * MIB  # the same, of their text
EVENT_BUFFER_ENDED_BYTES: Final = 64 * MIB  # of all runs that have ended, together
EVENTS_AT_ONCE: Final = 2_000  # told to a client in one go
CONCURRENT_RUNS_MAX_DEFAULT: Final = 100
LOG_LEVELS: Final = ("debug", "info", "warn", "error")
CHILD_RUN_DEPTH_MAX: Final = 10
APPROVAL_S_DEFAULT: Final = 7 * 24 * 3600.0  # a person's time to decide, where a step does not say

# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────
TOKEN_SECRET_BYTES: Final = 32
TOKEN_LIFETIME_S_MAX: Final = 10 * 365 * 24 * 3600.0
ARGON2_TIME_COST: Final = 1
ARGON2_MEMORY_KIB: Final = 8 * 1024
ARGON2_PARALLELISM: Final = 1
VERIFICATIONS_AT_ONCE: Final = 2
VERIFICATION_QUEUE_MAX: Final = 1_024
REFUSAL_DELAY_S: Final = 1.0  # failures are delayed, never a lock-out

assert COMPLETION_OUTPUTS_MAX < CONTROL_FRAME_MAX
assert CALL_VALUE_MAX < CONTROL_FRAME_MAX
assert INLINE_WRITE_MAX < WRITE_BODY_MAX
assert WRITE_RECORDS_MAX < BATCH_RECORDS_MAX
assert CALLS_PER_LINK_MAX + HELD_DISPATCHES_MAX < REQUESTS_OUTSTANDING_MAX
assert INLINE_CONTENT_MAX < INLINE_WRITE_MAX
assert BUNDLE_FILE_MAX < BUNDLE_UNPACKED_MAX < BUNDLE_CACHE_MAX
assert 2 * CAPTURE_MAX < COMPLETION_OUTPUTS_MAX
assert CAPTURE_TAIL < CAPTURE_MAX
assert LOG_BATCH_BYTES_MAX + LINE_MAX < CONTROL_FRAME_MAX
assert LOG_FRAME_LINES <= LOG_BATCH_LINES_MAX
assert LOG_FRAME_BYTES + LINE_MAX <= LOG_BATCH_BYTES_MAX
# A full window is always noted: what the orchestrator may keep back without a note is less.
assert LOG_NOTED_LINES + LOG_WAITING_LINES_MAX < LOG_WINDOW_LINES
assert LOG_NOTED_BYTES + LOG_WAITING_BYTES_MAX + LINE_MAX < LOG_WINDOW_BYTES
assert INLINE_CONTENT_MAX < COMPLETION_OUTPUTS_MAX
assert INLINE_CONTENT_MAX < ATTRIBUTES_MAX
assert BLOB_ORPHAN_KEPT_S > GRACE_S_MAX
assert CANCEL_TERM_S < CANCEL_WAIT_S
assert ENROLL_FRAME_MAX < CONTROL_FRAME_MAX
assert 2 * BUNDLE_BYTES_MAX < CONTROL_FRAME_MAX
assert NAME_LENGTH_MAX + 1 + 2 * TOKEN_SECRET_BYTES <= TOKEN_LENGTH_MAX
assert REQUESTS_OUTSTANDING_MAX <= OUTBOX_FRAMES_MAX
assert HELD_DISPATCHES_MAX <= FRAME_ITEMS_MAX
assert LOG_BATCH_LINES_MAX <= FRAME_ITEMS_MAX
