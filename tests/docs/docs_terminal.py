"""Typing what the documentation says: a page's marked blocks, in order, in a folder of their own, with real processes.

Rules
- The reader of a page sits in `/home/you`; that folder and `/tmp` are folders of ours. Paths are exchanged in both
  directions, so a page shows `/home/you/first-steps` wherever it runs.
- `swamp serve` gets a free port. A page that says 9090 is read and answered with that port.
- `<token>` in a command is the enrollment token that was printed last.
- What is printed is compared line by line with what the page shows, after both went through `VOLATILE`.
- Every wait has a deadline. Every process is a group of its own and is ended by group, whatever happens.
"""

import difflib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

import attrs
from docs_pages import PROJECT, Block

DEADLINE_S: Final = 90.0  # one command, or one line of a background process
HOME: Final = "/home/you"

VOLATILE: Final[tuple[tuple[str, str], ...]] = (
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", "<instant>"),
    (r"(?m)(?<=<instant>  )<?\d+[sm]$", "<age>"),
    (r"\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b", "<uuid>"),
    (r"\b[0-9a-f]{64}\b", "<secret>"),
    (r"(?<=dispatch=)[0-9a-f]{8}\b|(?<=Dispatch )[0-9a-f]{8}(?=:)", "<id>"),
    (r"(?<=in )\d+(\.\d+)?(ms|s)\b", "<duration>"),
    (r"(?<=Reconnecting in )\d+\.\d+s", "<duration>"),
    (r"\bpid \d+ on [\w.-]+", "<pid> on <host>"),
    (r"\bpid[= ]\d+", "<pid>"),
    (r"\bhost=\S+", "<host>"),
    (r"(?<= host )[\w.-]+(?=, pid)", "<host>"),
    (r"\b(linux|darwin)/\w+ *", "<platform>"),
    (r"\bswamp \d+\.\d+\.\d+\b", "swamp <version>"),
    # The size of swamp's own records, which name the host and more that differs: last column of a table of records.
    (r"(?m)^(\S+ +\S+ +\S+ +resource +\d+ +)\d+$", r"\1<size>"),
)
"""What differs from one machine or moment to the next: pattern and what stands for it. Nothing else is let pass."""


def settled(text: str) -> str:
    """`text` with everything volatile replaced."""
    for pattern, name in VOLATILE:
        text = re.sub(pattern, name, text)
    return text


def commands(block: Block) -> list[tuple[str, str]]:
    """A console block as (command, what it prints). A line that ends in a backslash goes on after `> `."""
    found: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        elif found and found[-1][0].endswith("\\") and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line.removeprefix('> ')}", [])
        else:
            assert found, f"{block.place}: a console block begins with a command"
            found[-1][1].append(line)
    return [(command, "".join(f"{line}\n" for line in printed)) for command, printed in found]


@attrs.define
class _Background:
    """A process that stays, and what it has printed. `told` counts the lines that a page has shown."""

    name: str
    process: "subprocess.Popen[str]"
    lines: list[str] = attrs.field(factory=list)
    told: int = 0
    over: bool = False
    news: threading.Condition = attrs.field(factory=threading.Condition)
    reader: threading.Thread | None = None

    def listen(self) -> None:
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self.news:
                self.lines.append(line)
                self.news.notify_all()
        with self.news:
            self.over = True
            self.news.notify_all()

    def take(self, number: int) -> str:
        """The next `number` lines that no page has shown yet, once they are printed."""
        deadline = time.monotonic() + DEADLINE_S
        with self.news:
            while len(self.lines) < self.told + number and not self.over:
                if not self.news.wait(max(0.0, deadline - time.monotonic())):
                    break
            found = self.lines[self.told : self.told + number]
            self.told += len(found)
        return "".join(found)

    def end(self) -> None:
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(DEADLINE_S)
        if self.reader is not None:
            self.reader.join(DEADLINE_S)
        if self.process.stdout is not None:
            self.process.stdout.close()


class Terminal:
    """The reader at work. A context manager: leaving it ends everything and removes the folders."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="swamp-docs-"))
        self._home = self._root / "home"
        self._temporary = self._root / "tmp"
        for folder in (self._home, self._temporary, self._root / "bin"):
            folder.mkdir()
        program = self._root / "bin" / "swamp"
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m swamp_orch.cli "$@"\n')
        program.chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SWAMP_")}
        self._environment = kept | {
            "PATH": f"{program.parent}{os.pathsep}{kept.get('PATH', os.defpath)}",
            "PYTHONPATH": str(PROJECT),
            "PYTHONUNBUFFERED": "1",
            "HOME": str(self._home),
            "NO_COLOR": "1",
        }
        self._folder = self._home
        self._background: dict[str, _Background] = {}
        self._token = "<token>"
        self._port = "9090"

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for one in reversed(self._background.values()):
            one.end()
            if kind is not None:
                print(f"── {one.name} ──", *one.lines, sep="\n")  # for the reader of a failure
        shutil.rmtree(self._root, ignore_errors=True)

    # ── one block ───────────────────────────────────────────────────────────────────────────────────────────
    def perform(self, block: Block) -> None:
        """What the block's mark says. AssertionError with a comparison where the page is not true."""
        word, _, rest = block.detail.partition(" ")
        if word in ("", "exit"):
            self._type(block, int(rest or 0))
        elif word == "background":
            self._start(block, rest)
        elif word == "interrupt":
            self._interrupt(block, rest)
        elif word == "ends":
            name, _, code = rest.partition(" ")
            self._end(block, name, int(code), block.text)
        elif word == "said":
            name = rest.removeprefix("by ")
            self._compare(block, block.text, self._background[name].take(block.text.count("\n")))
        elif word == "file":
            path = self._folder / self._here(rest)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(self._here(block.text))
        else:
            raise AssertionError(f"{block.place}: no such mark: {block.detail}")

    def _type(self, block: Block, code: int) -> None:
        typed = commands(block)
        for number, (command, printed) in enumerate(typed):
            # The shell tells where it ends up, so that `cd` has a meaning for the commands after it.
            where = self._root / "where"
            script = f"trap 'pwd > {where}' EXIT\n{self._here(command)}"
            ended = self._run(script)
            self._folder = Path(where.read_text().strip())
            self._compare(block, printed, ended.stdout)
            wanted = code if number == len(typed) - 1 else 0
            assert ended.returncode == wanted, f"{block.place}: `{command}` ended with {ended.returncode}"

    def _run(self, script: str) -> "subprocess.CompletedProcess[str]":
        with subprocess.Popen(["sh", "-c", script], **self._spawning()) as process:
            try:
                printed, _ = process.communicate(timeout=DEADLINE_S)
            except BaseException as error:
                os.killpg(process.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    said, _ = process.communicate()
                    raise AssertionError(f"not over within {DEADLINE_S:.0f} s: {script}\n{said}") from None
                raise
        return subprocess.CompletedProcess(script, process.returncode, printed)

    def _start(self, block: Block, name: str) -> None:
        ((command, printed),) = commands(block)
        serves = command.startswith("swamp serve")
        if serves:
            # A link that is silent for 15 s is made anew, and pages tell of the first one: a machine may be as slow as that.
            flags = "--port 0" if "--grace" in command else "--port 0 --grace 10m"
            command = re.sub(r" --port \d+", "", command).replace("swamp serve", f"swamp serve {flags}", 1)
        process = subprocess.Popen(["sh", "-c", f"exec {self._here(command)}"], **self._spawning())
        started = self._background[name] = _Background(name, process)
        started.listen()
        said = started.take(printed.count("\n"))
        if serves:
            found = re.search(r"listening on wss?://[^:]+:(\d+)", said)
            assert found, f"{block.place}: serve did not say where it listens:\n{said}"
            self._port = found[1]
        self._compare(block, printed, said)

    def _interrupt(self, block: Block, name: str) -> None:
        assert block.text.startswith("^C\n"), f"{block.place}: an interrupted block begins with ^C"
        self._background[name].process.send_signal(signal.SIGINT)
        self._end(block, name, 0, block.text.removeprefix("^C\n"))

    def _end(self, block: Block, name: str, code: int, wanted: str) -> None:
        """NAME ends, and `wanted` is the last it prints. What it said before may be left out of a page."""
        ending = self._background.pop(name)
        try:
            ended = ending.process.wait(DEADLINE_S)
        except subprocess.TimeoutExpired:
            ended = None
        finally:
            ending.end()
        assert ended is not None, f"{block.place}: {name} goes on:\n{''.join(ending.lines)}"
        said = ending.lines[ending.told :]
        self._compare(block, wanted, "".join(said[-wanted.count("\n") :]))
        assert ended == code, f"{block.place}: {name} ended with {ended}"

    def _spawning(self) -> dict[str, Any]:
        return {
            "cwd": self._folder,
            "env": self._environment,
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
            "encoding": "utf-8",
            "start_new_session": True,
        }

    # ── what a page says and what is here ───────────────────────────────────────────────────────────────────
    def _here(self, text: str) -> str:
        """What the page says, as it is to be typed here."""
        text = text.replace("<token>", self._token).replace(HOME, str(self._home))
        text = re.sub(r"(?<![\w/])/tmp/", f"{self._temporary}/", text)
        return re.sub(r"(?<=:)9090\b", self._port, text)

    def _there(self, text: str) -> str:
        """What was printed here, as the page says it."""
        text = text.replace(str(self._home), HOME).replace(str(self._temporary), "/tmp")
        return re.sub(rf"(?<=[: ]){self._port}\b", "9090", text)

    def _compare(self, block: Block, page: str, printed: str) -> None:
        tokens = re.findall(r"^ {2}([a-z0-9_-]+\.[0-9a-f]{64})$", printed, re.MULTILINE)
        if tokens:
            self._token = tokens[-1]
        wanted, got = settled(page), settled(self._there(printed))
        if wanted != got:
            shown = difflib.unified_diff(
                wanted.splitlines(keepends=True),
                got.splitlines(keepends=True),
                "the page",
                "what was printed",
            )
            raise AssertionError("".join((f"{block.place} is not true\n", *shown)))
