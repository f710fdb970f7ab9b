"""Reports of authors that were not made: what stands for one in the records, and what is said of it.

A report changes nothing about what it reports on (decision 19): neither its step nor its run fails, and nothing is executed again for
it. So it has to be said: in the record that stands for it, and as a warning of the run.
"""

import json
from collections.abc import Iterable, Iterator

from swamp_proto.messages.dispatch import Output
from swamp_worker.sdk.report_forms import FAILED, JSON, STATUS_TAG, failed_form, json_name, tags_of


def instead_of(output: Output, message: str) -> Output:
    """What is kept where the record of a report can not be."""
    tags = tags_of(output.spec, "method", failed=True)
    content = failed_form(output.spec, "method", message)
    return Output.of(output.spec, json_name(output.spec), "report", JSON, content, tags)


def failures(outputs: Iterable[Output]) -> Iterator[str]:
    """A sentence for each report that was not made."""
    for output in outputs:
        if output.kind == "report" and output.tags.get(STATUS_TAG) == FAILED:
            try:
                message = str(json.loads(output.content)["message"])
            except (ValueError, KeyError, TypeError):  # another program's word for it
                message = "it does not say why"
            yield warning(output.spec, message)


def warning(report: str, message: str) -> str:
    return f"the report {report} failed: {message}"
