"""The environment of a step, put together in one place.

From weakest to strongest: the executing process's own (without anything of swamp's: no token, no
credential), the orchestrator's snapshot, the step's own `env`, values bound by expressions, and over all of
them what names the dispatch: `SWAMP_DISPATCH` is how processes of a step are found again, so a step cannot
take it away from what it starts by `env:`.

Held as bytes: that is what a spawn needs, and the overlay of a run's snapshot is made once.
"""

import os
import re
from collections.abc import Mapping
from typing import Final

from swamp_proto import environment
from swamp_proto.messages.dispatch import Dispatch
from swamp_worker.execution.procfs import MARKER_NAME

_NAME: Final = re.compile(r"[^=\0]+")


class StepVariables:
    """Makes environments; `own` is what the executing process was started with."""

    def __init__(self, own: Mapping[str, str]) -> None:
        self._own = {name: value for name, value in own.items() if not name.startswith("SWAMP_")}
        self._snapshot: dict[str, str] | None = None
        self._base: dict[bytes, bytes] = {}

    def of(self, dispatch: Dispatch, env: Mapping[str, str]) -> dict[bytes, bytes]:
        """A fresh environment. Raises ValueError for a name or value that none can hold."""
        if self._snapshot != dispatch.environment:
            overlaid = environment.overlay(self._own, dispatch.environment)
            self._base = {os.fsencode(name): os.fsencode(value) for name, value in overlaid.items()}
            self._snapshot = dispatch.environment
        found = dict(self._base)
        place = dispatch.place
        names = {
            MARKER_NAME: dispatch.dispatch,
            "SWAMP_FENCE": str(dispatch.fence),
            "SWAMP_ATTEMPT": str(dispatch.attempt),
            "SWAMP_ATTEMPT_KEY": dispatch.attempt_key,
            "SWAMP_RUN_ID": place.run,
            "SWAMP_WORKFLOW": place.workflow,
            "SWAMP_JOB": place.job,
            "SWAMP_STEP": place.step,
            "SWAMP_MODEL": dispatch.model_name,
        }
        for variables in (env, dispatch.bindings, names):
            for name, value in variables.items():
                if _NAME.fullmatch(name) is None or "\0" in value:
                    raise ValueError(f"no environment can hold the variable {name!r}")
                try:
                    found[os.fsencode(name)] = os.fsencode(value)
                except UnicodeEncodeError:
                    raise ValueError(f"the variable {name!r} is not text that can be encoded") from None
        return found
