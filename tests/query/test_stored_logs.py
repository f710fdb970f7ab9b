"""Logs as an answer carries them: the last lines, counted as they were numbered, however long the log is."""

import io
from pathlib import Path
from typing import BinaryIO

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swamp_orch.api.services import logs
from swamp_orch.api.services.logs import read_log
from swamp_orch.store.interface import Batch, NewRecord, Record, Store
from swamp_orch.store.memory import MemoryStore
from swamp_orch.store.sqlite import open_store
from swamp_proto.errors import LocalError


def stored(store: Store, data: bytes) -> Record:
    writer = store.stage()
    writer.write(data)
    content = writer.finish()
    new = NewRecord(
        model_type="command/shell", model_id="m", model_name="m", name="log", spec="log", content=content
    )
    store.commit(Batch((new,)))
    record = store.latest("m", "log")
    assert record is not None
    return record


@attrs.frozen
class OneBlob:
    """As much of a store as is read from."""

    data: bytes

    def open_blob(self, sha256: str) -> BinaryIO:
        return io.BytesIO(self.data)


ROW = stored(MemoryStore(lambda: 0), b"")


@given(
    st.lists(st.sampled_from(["", "one", "ü\r", "a\x0bb\u2028c"]), max_size=30),
    st.one_of(st.none(), st.integers(0, 40)),
    st.integers(1, 9),
)
@settings(deadline=None)
def test_the_last_lines_are_those(lines: list[str], tail: int | None, chunk: int) -> None:
    data = "".join(f"{line}\n" for line in lines).encode()
    kept, logs._READ = logs._READ, chunk  # type: ignore[misc]
    try:
        for content in (data, None):  # in the row, and as a blob
            record = attrs.evolve(ROW, content=content, size=len(data))
            found = read_log(OneBlob(data), record, tail)  # type: ignore[arg-type]
            assert found.count == len(lines)
            assert found.lines == (lines if tail is None else lines[len(lines) - min(tail, len(lines)) :])
    finally:
        logs._READ = kept  # type: ignore[misc]


def test_a_log_that_no_answer_can_carry_names_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "LOG_ANSWER_LINES", 1_000)
    monkeypatch.setattr(logs, "EXPORT_MAX", 50_000)
    monkeypatch.setattr(logs, "_READ", 1_000)
    store = open_store(tmp_path / "data")
    try:
        short = stored(store, b"x" * 50 + b"\n" * 60_000)
        assert read_log(store, short, 3).lines == ["", "", ""]
        with pytest.raises(LocalError, match="the log has 60000 lines") as refused:
            read_log(store, short, None)
        assert refused.value.hint is not None
        assert "--tail N" in refused.value.hint
        assert str(tmp_path) in refused.value.hint
        wide = stored(store, (b"x" * 40_000 + b"\n") * 3)
        assert read_log(store, wide, 1).lines == ["x" * 40_000]
        with pytest.raises(LocalError, match="the log has 3 lines"):
            read_log(store, wide, 2)
    finally:
        store.close()
