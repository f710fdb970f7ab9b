"""One redemption against the store: look, verify, decide on what is there *now*, write expecting just that.

The slow part (`Verifier.verify`) belongs in a thread behind a limiter, the rest is quick; so the gateway
calls `look`, runs the verification wherever it likes, and hands the answer to `settle`. `settle` returns only
when what it answers is durable; a lost compare-and-swap means somebody else changed the token, so it reads
and decides again.
"""

from collections.abc import Callable

from swamp_orch.core.tokens import Admit, Challenge, Refuse, challenge, redeem
from swamp_orch.store.interface import Batch, Store
from swamp_orch.tokens.records import read_token, token_record
from swamp_proto.errors import Bug, Conflict
from swamp_proto.ids import MachineId

ROUNDS_MAX = 1_000  # every lost round is somebody else's progress; this many means a store that lies


def look(store: Store, name: str) -> Challenge:
    """What to verify the presented secret of `name` against."""
    return challenge(read_token(store, name))


def settle(
    store: Store,
    name: str,
    machine_id: MachineId,
    asked: Challenge,
    secret_ok: bool,
    clock: Callable[[], int],
) -> Admit | Refuse:
    """Decide and make it durable. The token of an `Admit` carries the version it is stored as."""
    for _ in range(ROUNDS_MAX):
        answer = redeem(name, read_token(store, name), machine_id, clock(), asked, secret_ok)
        written = answer.token if isinstance(answer, Refuse) or answer.wrote else None
        if written is None:
            return answer
        try:
            store.commit(Batch(records=(token_record(written),)))
        except Conflict:
            continue
        return answer
    raise Bug(f"token {name}: {ROUNDS_MAX} compare-and-swaps lost in a row")
