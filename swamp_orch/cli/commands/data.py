"""`swamp data`: records. Scalars of a query are printed bare, one per line; everything else as tables."""

import base64
import json
import sys
from collections.abc import Mapping
from typing import Any

from swamp_orch.cli import console
from swamp_orch.cli.groups import argument, command, option, yes_option
from swamp_orch.cli.invocation import Invocation
from swamp_proto.errors import Broken, UsageError

_FIELDS = ("name", "modelName", "specName", "dataType", "version", "size")


def _scalar(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _selected(invocation: Invocation, values: list[Any]) -> None:
    """Maps and lists become a table when all rows are of that kind; otherwise one row a line."""
    if values and all(isinstance(value, Mapping) for value in values):
        columns = list(dict.fromkeys(key for value in values for key in value))
        rows = [[value.get(column) for column in columns] for value in values]
        invocation.lines(*console.table(columns, rows, color=invocation.color))
    elif values and all(isinstance(value, list) for value in values):
        most = max(len(value) for value in values)
        rows = [[*value, *[None] * (most - len(value))] for value in values]
        invocation.lines(*console.table([str(i + 1) for i in range(most)], rows, color=invocation.color))
    else:
        for value in values:
            if isinstance(value, Mapping | list):
                print(json.dumps(value, ensure_ascii=False))
            else:
                print(_scalar(value))


@command(
    "query",
    argument("predicate"),
    option("--select", metavar="EXPR", help="A CEL projection: 'attributes.stdout', '{\"n\": name}'."),
    option("--limit", type=int, metavar="N", help="At most this many."),
    help='Query records with a CEL predicate: \'modelName == "x" && specName == "result"\'.',
)
def query(invocation: Invocation, predicate: str, select: str | None, limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise UsageError(f"--limit must be positive (got {limit})")
    found = invocation.call("data.query", predicate=predicate, select=select, limit=limit)
    skipped = found.get("skippedRows") or 0
    if invocation.json:
        invocation.document(found)
        return
    results = found["results"]
    if select is not None:
        _selected(invocation, results)
        if found.get("limited"):
            invocation.note(f"Showing {len(results)} results (limit reached)")
    elif not results:
        print("No matching data found.")
    else:
        rows = [[row.get(field) for field in _FIELDS] for row in results]
        invocation.lines(*console.table(_FIELDS, rows, color=invocation.color), "")
        count = f"{len(results)} result{'' if len(results) == 1 else 's'}"
        print(f"Showing {len(results)} results (limit reached)" if found.get("limited") else count)
    if skipped:
        why = f": {found['skippedReason']}" if found.get("skippedReason") else ""
        invocation.warn(f"{skipped} row(s) could not be evaluated and are left out{why}")
    if found.get("note"):
        invocation.note(f"Note: {found['note']}")


@command(
    "get",
    argument("model", kind="model"),
    argument("name"),
    option("--version", type=int, metavar="N", help="This version. Default: the latest."),
    option("--no-content", is_flag=True, help="Only the description."),
    help="Show a record: its description and its content.",
)
def get(invocation: Invocation, model: str, name: str, version: int | None, no_content: bool) -> None:
    found = invocation.call("data.get", model=model, name=name, version=version, content=not no_content)
    if invocation.json:
        invocation.document(found)
        return
    print(f"Data: {found['name']} (v{found['version']})")
    print(f"Model: {found['modelName']} ({found['modelType']})")
    print(f"Content: {found['contentType']}, {console.size(found['size'])}")
    kept = found.get("garbageCollection")
    print(
        f"Lifetime: {found.get('lifetime', '-')}"
        + (f" | GC: {console.cell(kept)}" if kept is not None else "")
    )
    if found.get("tags"):
        print("Tags: " + ", ".join(f"{k}={v}" for k, v in found["tags"].items()))
    owner = found.get("ownerDefinition")
    if isinstance(owner, Mapping):
        kind = owner.get("ownerType") or owner.get("type")
        print(f"Owner: {kind} ({owner.get('ownerRef') or owner.get('ref') or owner.get('id')})")
    print(f"Created: {found['createdAt']}")
    if found.get("contentPath"):
        print(f"Path: {found['contentPath']}")
    if found.get("contentOmitted"):
        invocation.note(found["contentOmitted"])
    if no_content or found.get("content") is None:
        return
    content = found["content"]
    print()
    print(content if isinstance(content, str) else json.dumps(content, indent=2, ensure_ascii=False))


@command(
    "list",
    argument("model", required=False, kind="model"),
    option("--type", "data_type", metavar="TYPE", help="Only this type of data, such as resource or file."),
    help="List the records of a model, or of all.",
)
def list_data(invocation: Invocation, model: str | None, data_type: str | None) -> None:
    found = invocation.call("data.list", model=model, type=data_type)
    if invocation.json:
        invocation.document(found)
        return
    groups = found.get("groups") or []
    if not groups:
        print(f"No data found for {model}." if model else "No data found.")
        return
    if found.get("modelName"):
        print(f"Data for {found['modelName']} ({found.get('modelType')})")
    for group in groups:
        items = group["items"]
        print(f"{group['type']} ({len(items)} item{'' if len(items) == 1 else 's'}):")
        rows = [
            (
                *((item.get("modelName", "-"),) if not found.get("modelName") else ()),
                item["name"],
                f"v{item['version']}",
                item["contentType"],
                console.size(item["size"]),
                str(item["createdAt"])[:10],
            )
            for item in items
        ]
        # No header: the group line is one.
        invocation.lines(*(f"  {line}" for line in console.table([""] * len(rows[0]), rows)[1:]))


@command(
    "versions",
    argument("model", kind="model"),
    argument("name"),
    help="List the versions of a record, newest first.",
)
def versions(invocation: Invocation, model: str, name: str) -> None:
    found = invocation.call("data.versions", model=model, name=name)
    if invocation.json:
        invocation.document(found)
        return
    rows = [
        (
            f"v{v['version']}" + (" (latest)" if v.get("isLatest") else ""),
            v["createdAt"],
            console.size(v["size"]),
            v.get("checksum") or "-",
        )
        for v in found["versions"]
    ]
    invocation.lines(*console.table(("VERSION", "CREATED", "SIZE", "SHA256"), rows, color=invocation.color))


@command(
    "search",
    argument("text", required=False),
    option("--model", kind="model", metavar="NAME", help="Only records of this model."),
    option("--type", "data_type", metavar="TYPE", help="Only this type of data."),
    option("--limit", type=int, metavar="N", help="At most this many. Default: 50."),
    help="Find records whose name, model or tags contain TEXT.",
)
def search(
    invocation: Invocation, text: str | None, model: str | None, data_type: str | None, limit: int | None
) -> None:
    found = invocation.call("data.search", query=text, model=model, type=data_type, limit=limit)
    if invocation.json:
        invocation.document(found)
        return
    results = found["results"]
    if not results:
        print("No matching data found.")
        return
    rows = [
        (
            r.get("modelName"),
            r.get("name"),
            f"v{r.get('version')}",
            r.get("contentType"),
            console.size(r.get("size")),
        )
        for r in results
    ]
    invocation.lines(
        *console.table(("MODEL", "NAME", "VERSION", "CONTENT", "SIZE"), rows, color=invocation.color)
    )


@command(
    "delete",
    argument("model", kind="model"),
    argument("name", required=False),
    option("--version", type=int, metavar="N", help="Only this version."),
    option("--prefix", metavar="TEXT", help="Every record whose name begins so."),
    option("--all", "everything", is_flag=True, help="Every record of the model."),
    option("--dry-run", is_flag=True, help="Say what would be deleted."),
    yes_option(),
    help="Delete records of a model, for good.",
)
def delete(
    invocation: Invocation,
    model: str,
    name: str | None,
    version: int | None,
    prefix: str | None,
    everything: bool,
    dry_run: bool,
    yes: bool,
) -> None:
    ways = [name is not None, prefix is not None, everything]
    if sum(ways) != 1:
        raise UsageError("say what to delete", hint="exactly one of: a record's name, --prefix TEXT, --all")
    if version is not None and name is None:
        raise UsageError("--version needs the name of a record")
    what = f"record {name}" if name else f"every record {prefix}*" if prefix is not None else "every record"
    if version is not None:
        what = f"version {version} of {what}"
    if not dry_run and not invocation.confirm(f"Delete {what} of {model}?", yes):
        invocation.cancelled()
        return
    done = invocation.call(
        "data.delete",
        model=model,
        name=name,
        version=version,
        prefix=prefix,
        all=everything or None,
        dryRun=dry_run or None,
    )
    if invocation.json:
        invocation.document(done)
        return
    verb = "Would delete" if dry_run else "Deleted"
    count = "" if version is not None else f"{done['totalVersionsDeleted']} version(s) of "
    print(f"{verb} {count}{what} of {model}")
    for failure in done.get("failed") or []:
        invocation.warn(f"{failure.get('dataName')}: {failure.get('error')}")


@command(
    "gc",
    option("--dry-run", is_flag=True, help="Say what would be collected."),
    yes_option(),
    help="Collect expired records and surplus versions.",
)
def gc(invocation: Invocation, dry_run: bool, yes: bool) -> None:
    if not dry_run and not invocation.confirm("Delete everything past its retention?", yes):
        invocation.cancelled()
        return
    done = invocation.call("data.gc", dryRun=dry_run or None)
    if invocation.json:
        invocation.document(done)
        return
    verb = "Would collect" if dry_run else "Collected"
    records, versions = done.get("dataEntriesExpired", 0), done.get("versionsDeleted", 0)
    freed = console.size(done.get("bytesReclaimed", 0))
    print(f"{verb} {records} expired record(s) and {versions} version(s), {freed}")
    for entry in done.get("expiredEntries") or []:
        print(f"  {entry['modelName']} {entry['dataName']}: {entry['reason']}")


@command(
    "export",
    argument("model", kind="model"),
    argument("name"),
    option("--version", type=int, metavar="N", help="This version. Default: the latest."),
    option("--out", "-o", metavar="FILE", help="Where to write. Default: stdout."),
    help="Write the bytes of a record to a file or to stdout.",
)
def export(invocation: Invocation, model: str, name: str, version: int | None, out: str | None) -> None:
    found = invocation.call("data.export", model=model, name=name, version=version)
    raw = base64.b64decode(found["base64"])
    if out is not None:
        _write(out, raw)
        if not invocation.json:
            invocation.note(f"Wrote {len(raw)} bytes to {out}")
            return
    if invocation.json:
        invocation.document(found if out is None else {**found, "path": out})
        return
    sys.stdout.flush()
    sys.stdout.buffer.write(raw)
    sys.stdout.buffer.flush()


def _write(path: str, raw: bytes) -> None:
    """Beside the target, then renamed: a full disk leaves no half of a file."""
    import os
    from pathlib import Path

    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        part.write_bytes(raw)
        part.replace(target)
    except OSError as problem:
        part.unlink(missing_ok=True)
        raise Broken(f"cannot write {path}: {problem.strerror}") from problem
