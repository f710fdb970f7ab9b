"""Every marked block of the documentation is executed, in the order of its page; no console block goes unmarked."""

import subprocess

import pytest
from docs_pages import Block, Page, pages
from docs_terminal import Terminal, commands, settled

PAGES = pages()
MARKED = [page for page in PAGES.values() if any(block.mark == "run" for block in page.blocks)]


@pytest.mark.parametrize("page", MARKED, ids=lambda page: page.name)
def test_a_page_is_true(page: Page) -> None:
    with Terminal() as terminal:
        for block in page.blocks:
            if block.mark == "run":
                terminal.perform(block)


def test_the_tutorial_is_executed() -> None:
    tutorial = PAGES["docs/tutorial.md"]
    console = [block for block in tutorial.blocks if block.language == "console"]
    typed = " ".join(command for block in console for command, _ in _typed(block))
    for command in (
        "repo init",
        "vault create local_encryption sandbox-vault",
        "worker token create build-node --duration 1h",
        "worker token list",
        "swamp serve",
        "worker connect ws://localhost:9090 --token <token>",
        "model create command/shell remote-echo",
        "model method run remote-echo execute",
        "workflow create --file",
        "workflow run remote-demo",
        "swamp/worker",
        "swamp/enrollment-token",
        "swamp/step-lease",
    ):
        assert command in typed, command
    assert {block.mark for block in console} == {"run"}


def _typed(block: Block) -> list[tuple[str, str]]:
    return [] if block.text.startswith("^C") else commands(block)


@pytest.mark.parametrize("page", PAGES.values(), ids=lambda page: page.name)
def test_every_console_block_is_executed_or_says_why_not(page: Page) -> None:
    for block in page.blocks:
        if block.language == "console":
            assert block.mark or page.skipped, f"{block.place}: mark it <!-- run --> or <!-- skip: reason -->"


# ── the harness itself ──────────────────────────────────────────────────────────────────────────────────────────────
def _block(text: str, detail: str = "") -> Block:
    return Block("page.md", 1, "console", text, "run", detail)


def test_what_a_page_shows_falsely_is_found() -> None:
    with Terminal() as terminal:
        terminal.perform(_block("$ mkdir here && cd here\n$ pwd\n/home/you/here\n"))
        terminal.perform(_block("$ echo one; exit 3\none\n", "exit 3"))
        for text, detail in (
            ("$ echo one\ntwo\n", ""),
            ("$ echo one\n", ""),
            ("$ true\none\n", ""),
            ("$ echo one\n one\n", ""),
            ("$ false\n", ""),
            ("$ true\n", "exit 3"),
        ):
            with pytest.raises(AssertionError):
                terminal.perform(_block(text, detail))


def test_a_long_command_goes_on_after_a_backslash() -> None:
    assert commands(_block("$ echo a \\\n>     b\na b\n$ true\n")) == [
        ("echo a \\\n    b", "a b\n"),
        ("true", ""),
    ]


def test_what_is_left_running_is_ended() -> None:
    with Terminal() as terminal:
        terminal.perform(_block("$ sh -c 'echo up; sleep 600; true'\nup\n", "background b"))
        group = terminal._background["b"].process.pid
    found = subprocess.run(
        ["ps", "-o", "stat=", "-g", str(group)], capture_output=True, text=True, check=False
    )
    assert [state for state in found.stdout.split() if not state.startswith("Z")] == []


def test_only_what_is_volatile_is_let_pass() -> None:
    assert settled("pid=12 at 2026-06-15T11:34:58.961Z in 25ms") == "<pid> at <instant> in <duration>"
    for kept in ("build-node", "9090", "1 succeeded · 0 failed", "v1", "exit code 3", "enrolled"):
        assert settled(kept) == kept
