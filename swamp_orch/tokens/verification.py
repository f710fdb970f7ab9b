"""Verifying token secrets: argon2id in front, a memory of what was verified behind it.

Rules that hold here:

1. Every path costs exactly one argon2 verification: right secret, wrong secret, unknown name (a dummy hash of
   the same parameters). Only a secret that this very process has verified before against this very mint is
   cheaper, and whoever holds that secret learns nothing from being quick.
2. The memory replaces argon2 only, never a check of state: it answers "is this the secret", not "may this one
   in".
3. It keeps no secret: an entry is an HMAC, under a key of this process, over mint id, stored hash and secret.

Secrets have 256 random bits, so the slowness of the hash buys nothing against guessing; the parameters are
chosen to be cheap (docs/decisions). Functions are synchronous and thread-safe: they are meant to run in a
thread behind a limiter.
"""

import hashlib
import hmac
import secrets
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from swamp_orch.core.tokens import Challenge
from swamp_proto.errors import Broken
from swamp_proto.limits import ARGON2_MEMORY_KIB, ARGON2_PARALLELISM, ARGON2_TIME_COST, TOKEN_SECRET_BYTES

if TYPE_CHECKING:
    from argon2 import PasswordHasher

REMEMBERED_MAX: Final = 4_096


def new_secret() -> str:
    """256 random bits as 64 hex digits."""
    return secrets.token_hex(TOKEN_SECRET_BYTES)


class Verifier:
    """One per process. `spent` counts argon2 verifications: what an attacker can make this process pay."""

    def __init__(self, *, remembered_max: int = REMEMBERED_MAX) -> None:
        self.spent = 0
        self._key = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._remembered: OrderedDict[bytes, None] = OrderedDict()
        self._remembered_max = remembered_max
        self._hasher: PasswordHasher | None = None
        self._dummy = ""

    def hash(self, secret: str) -> str:
        """The argon2id hash to keep in the record, in its standard text form."""
        return self._ready().hash(_encoded(secret))

    def knows(self, asked: Challenge, secret: str) -> bool:
        """Whether this process verified exactly this before; costs no argon2."""
        if asked.secret_hash is None:
            return False
        digest = self._digest(asked, secret)
        with self._lock:
            if digest not in self._remembered:
                return False
            self._remembered.move_to_end(digest)
            return True

    def verify(self, asked: Challenge, secret: str) -> bool:
        """Whether `secret` is what `asked` is about. Takes milliseconds: call it in a thread.

        Raises Broken when the stored hash is not an argon2 hash.
        """
        if self.knows(asked, secret):
            return True
        hasher = self._ready()
        from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

        with self._lock:
            self.spent += 1
        try:
            hasher.verify(self._dummy if asked.secret_hash is None else asked.secret_hash, _encoded(secret))
        except VerifyMismatchError:
            return False
        except (InvalidHashError, VerificationError) as error:
            raise Broken(
                "the stored hash of an enrollment token is not readable",
                hint="revoke the token and create it again",
            ) from error
        if asked.secret_hash is None:
            return False
        with self._lock:
            self._remembered[self._digest(asked, secret)] = None
            while len(self._remembered) > self._remembered_max:
                self._remembered.popitem(last=False)
        return True

    def _ready(self) -> "PasswordHasher":
        """The hasher. The dummy is made with it, so that no path is the slower one the first time."""
        with self._lock:
            if self._hasher is None:
                from argon2 import PasswordHasher, Type

                hasher = PasswordHasher(
                    time_cost=ARGON2_TIME_COST,
                    memory_cost=ARGON2_MEMORY_KIB,
                    parallelism=ARGON2_PARALLELISM,
                    type=Type.ID,
                )
                self._dummy = hasher.hash(secrets.token_bytes(TOKEN_SECRET_BYTES))
                self._hasher = hasher
            return self._hasher

    def _digest(self, asked: Challenge, secret: str) -> bytes:
        parts = ((asked.mint_id or "").encode(), (asked.secret_hash or "").encode(), _encoded(secret))
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._key, message, hashlib.sha256)


def _encoded(secret: str) -> bytes:
    return secret.encode("utf-8", "surrogatepass")
