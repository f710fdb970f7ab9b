"""The pages of the documentation, read: headings and their anchors, links, fenced blocks and the marks on them.

A mark is an HTML comment on the line before a fenced block (blank lines may stand between):

| mark | means |
|---|---|
| `<!-- run -->` | a ```console block: its commands are typed, and print exactly what stands there |
| `<!-- run: exit N -->` | the same, and the (last) command ends with exit code N |
| `<!-- run: background NAME -->` | its one command is started and stays; it prints the lines that stand there |
| `<!-- run: interrupt NAME -->` | a block that begins with `^C`: NAME gets SIGINT, prints these lines, ends with 0 |
| `<!-- run: ends NAME N -->` | a ```text block: NAME ends by itself with exit code N, having printed these lines |
| `<!-- run: said by NAME -->` | a ```text block: what NAME prints meanwhile |
| `<!-- run: file PATH -->` | the block's text is written to PATH |
| `<!-- skip: REASON -->` | a block that is not executed, and why |
| `<!-- skip page: REASON -->` | on a line of its own, anywhere: the page's unmarked blocks are not executed, and why |

`docs_terminal.py` executes them. Nothing here runs anything.
"""

import re
from pathlib import Path
from typing import Final

import attrs

PROJECT: Final = Path(__file__).parents[2]
DOCS: Final = PROJECT / "docs"
README: Final = PROJECT / "README.md"

_MARK: Final = re.compile(r"<!-- (run|skip|skip page)(?:: (.+?))? -->")
_FENCE: Final = re.compile(r"( *)(`{3,})(\S*).*")
_HEADING: Final = re.compile(r"(#{1,6}) (.+)")
_LINK: Final = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")


@attrs.frozen
class Block:
    """A fenced block. `mark` and `detail` are of the comment before it; `line` counts from 1."""

    page: str
    line: int
    language: str
    text: str
    mark: str = ""
    detail: str = ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


@attrs.frozen
class Page:
    """One file. `prose` is its text with fenced blocks and comments blanked."""

    name: str
    text: str
    prose: str
    blocks: tuple[Block, ...]
    anchors: frozenset[str]
    skipped: str = ""

    @property
    def links(self) -> list[str]:
        return _LINK.findall(re.sub(r"`[^`\n]*`", "", self.prose))


def anchor(heading: str) -> str:
    """A heading's anchor, as the usual renderers of Markdown make it."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")


def read(path: Path) -> Page:
    """Parse one page. A fence that never ends is an error."""
    name, text = str(path.relative_to(PROJECT)), path.read_text()
    prose: list[str] = []
    blocks: list[Block] = []
    anchors: list[str] = []
    mark = detail = skipped = ""
    lines = enumerate(text.split("\n"), start=1)
    for number, line in lines:
        fence = _FENCE.fullmatch(line)
        if fence:
            inside: list[str] = []
            for _, within in lines:
                if within.strip() == fence[2]:
                    break
                inside.append(within.removeprefix(fence[1]))
            else:
                raise AssertionError(f"{name}:{number}: this fence never ends")
            blocks.append(Block(name, number, fence[3], "".join(f"{one}\n" for one in inside), mark, detail))
            mark = detail = ""
            prose += [""] * (len(inside) + 2)
            continue
        marked = _MARK.fullmatch(line.strip())
        if marked and marked[1] == "skip page":
            skipped = marked[2] or ""
            assert skipped, f"{name}:{number}: a skip without a reason"
        elif marked:
            assert not mark, f"{name}:{number}: two marks for one block"
            mark, detail = marked[1], marked[2] or ""
            assert mark == "run" or detail, f"{name}:{number}: a skip without a reason"
        elif line.strip():
            assert not mark, f"{name}:{number}: a mark without a block after it"
        if heading := _HEADING.fullmatch(line):
            found = anchor(heading[2])
            twins = sum(1 for one in anchors if re.fullmatch(re.escape(found) + r"(-\d+)?", one))
            anchors.append(f"{found}-{twins}" if found in anchors else found)
        prose.append("" if marked else line)
    assert not mark, f"{name}: a mark without a block after it"
    return Page(name, text, "\n".join(prose), tuple(blocks), frozenset(anchors), skipped)


def pages() -> dict[str, Page]:
    """Every page: the files of docs/ and README.md, by path from the project's root."""
    return {page.name: page for page in map(read, (README, *sorted(DOCS.rglob("*.md"))))}
