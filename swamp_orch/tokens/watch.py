"""All tokens as they are now, read again cheaply: only what was written since the last look is parsed.

For one thread at a time. Any process may have written; a look sees everything that was committed before it began.
"""

from swamp_orch.core.tokens import Token
from swamp_orch.store.bookkeeping import ENROLLMENT_TOKEN
from swamp_orch.store.interface import Comparison, Selection, Store, Term
from swamp_orch.tokens.records import parse_token

_TOKENS = Selection(terms=(Term("modelType", Comparison.EQ, (ENROLLMENT_TOKEN,)),))


class TokenWatch:
    """`look` brings `tokens` up to date."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = 0
        self.tokens: dict[str, Token] = {}

    def look(self) -> None:
        """Read what is new. Raises Broken for a record that can not be read, naming it."""
        for record in self._store.select(_TOKENS, after=self._seen):
            token = parse_token(self._store, record)
            self.tokens[token.name] = token
            self._seen = max(self._seen, record.seq)
