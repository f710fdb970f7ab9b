"""Placement keys: `target`, `labels`, `platform`, `queueTimeout`, `affinity`, and how they are inherited.

Rules:
1. `target` and `labels` are two ways to say the same thing; one level may use one of them, not both.
2. Workflow → job → step, per key, the nearer one wins. `target` and `labels` count as one key here: a step's
   own `target` replaces inherited labels, and its own `labels` an inherited target. `labels: {}` replaces
   either by nothing.
3. Labels are text. `gpu: true` is a boolean to YAML and is refused with the quoted form.

It does not know workers, or which of them matches.
"""

import re
from typing import Final

import attrs

from swamp_orch.definitions.fields import Fields, check_expressions, has_expression
from swamp_orch.definitions.values import Placement
from swamp_proto.limits import LABEL_LENGTH_MAX, LABELS_MAX

PLACEMENT_KEYS: Final = ("target", "labels", "platform", "queueTimeout")
GROUP_KEYS: Final = (*PLACEMENT_KEYS, "affinity")

_PLATFORM: Final = re.compile(r"[a-z0-9]+(/[a-z0-9_]+)?")


@attrs.frozen
class Declared:
    """What one level says itself. None: nothing said."""

    target: str | None = None
    labels: dict[str, str] | None = None
    platform: str | None = None
    queue_timeout_s: float | None = None  # 0: wait for ever
    affinity: bool | None = None

    def under(self, parent: Placement) -> Placement:
        """The effective placement below `parent`."""
        if self.target is not None:
            target, labels = self.target, {}
        elif self.labels is not None:
            target, labels = None, self.labels
        else:
            target, labels = parent.target, dict(parent.labels)
        queue_timeout_s = (
            parent.queue_timeout_s if self.queue_timeout_s is None else self.queue_timeout_s or None
        )
        return Placement(
            target=target,
            labels=labels,
            platform=self.platform if self.platform is not None else parent.platform,
            queue_timeout_s=queue_timeout_s,
            affinity=parent.affinity if self.affinity is None else self.affinity,
        )


def read_placement(fields: Fields) -> Declared:
    """The placement keys of a workflow, job or step; problems go to the fields' findings."""
    if "target" in fields and "labels" in fields:
        fields.problem(
            f"{fields.what} has both 'target' and 'labels'; a placement is one or the other",
            "remove one of them",
            max(("target", "labels"), key=lambda key: fields.findings.source.lines.get(fields.under(key), 0)),
        )
    target = fields.text("target") or None
    labels = None
    if "labels" in fields:
        if fields.data["labels"] is None:
            fields.wrong("labels", "a map", "write labels: {} to clear inherited ones, or remove the key")
        labels = fields.texts("labels")
        if len(labels) > LABELS_MAX:
            fields.problem(f"{fields.what} has more than {LABELS_MAX} labels", None, "labels")
        for key, value in labels.items():
            if not key or not value or max(len(key), len(value)) > LABEL_LENGTH_MAX:
                fields.problem(
                    f"the label {key}={value} on {fields.what} must have 1 to {LABEL_LENGTH_MAX} characters"
                    " on both sides",
                    None,
                    "labels",
                    key,
                )
    platform = fields.text("platform") or None
    if platform and not has_expression(platform) and not _PLATFORM.fullmatch(platform):
        fields.problem(
            f"'platform' on {fields.what} must be an operating system, or one with an architecture,"
            f" not '{platform}'",
            "write platform: linux or platform: linux/x86_64",
            "platform",
        )
    for key in ("target", "labels", "platform"):
        if key in fields:
            check_expressions(fields.data[key], fields.findings, fields.under(key))
    return Declared(
        target=target,
        labels=labels,
        platform=platform,
        queue_timeout_s=fields.duration("queueTimeout", zero=True),
        affinity=fields.flag("affinity") if "affinity" in fields else None,
    )
