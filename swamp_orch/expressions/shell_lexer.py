"""Where in a shell text a value would stand: the quoting around each hole.

A *hole* (`HOLE`) marks where an expression stood. The lexer follows what POSIX shells and bash agree on:
quotes, escapes, `$(…)`, `${…}`, `$((…))`, backticks, here-documents, comments. It is conservative: at the
first thing it does not understand, or that shells read differently, every later hole is `UNCLEAR`. It never
guesses, because a wrong guess would let data become commands.

It also knows, for each hole, the simple command around it as far as it has been read, to find the places
where a shell evaluates a text a second time: `eval`, `sh -c`, the command's own name, a remote shell.
"""

import re
from enum import Enum
from typing import Final

import attrs

HOLE: Final = "\0"
"""Cannot occur in a shell text: the system passes texts up to the first NUL."""


class Context(Enum):
    """Where a hole is. The value says it to people."""

    WORD = "unquoted"
    DOUBLE = "in double quotes"
    COMMENT = "in a comment"
    SINGLE = "in single quotes, where the shell expands nothing"
    HEREDOC = "in a here-document"
    ARITHMETIC = "in arithmetic, which a shell evaluates again"
    BACKTICK = "in backticks"
    PARAMETER = "inside ${…}"
    ESCAPED = "right after a \\ or $, which would change what it means"
    COMMAND = "where the command's name stands, so the value would decide what runs"
    VARIABLE = "where a variable's name stands, which a shell may evaluate"
    AGAIN = "in a text that is run as code again (eval, sh -c, …)"
    REMOTE = "in a command for ssh, which another shell parses again"
    UNCLEAR = "at a place this program does not understand well enough to quote safely"


SAFE: Final = frozenset({Context.WORD, Context.DOUBLE, Context.COMMENT})


@attrs.frozen
class Found:
    """The place of one hole. `why` explains UNCLEAR."""

    context: Context
    why: str = ""


class _Unclear(Exception):
    pass


_ASSIGNMENT: Final = re.compile(r"[A-Za-z_][A-Za-z_0-9]*\+?=")
_RESERVED: Final = frozenset(
    {"if", "then", "else", "elif", "do", "while", "until", "!", "{", "}", "time", "coproc"}
)
_RUNS_NEXT: Final = frozenset(
    {"exec", "command", "builtin", "nohup", "env", "sudo", "doas", "xargs", "nice", ".", "source"}
)
_EVALUATES: Final = frozenset({"eval", "let", "[[", "trap"})
_TAKES_NAMES: Final = frozenset(
    {"read", "unset", "declare", "typeset", "local", "readonly", "export", "getopts", "mapfile", "readarray"}
)
_INTERPRETER: Final = re.compile(
    r"(?:.*/)?(?:(?:ba|da|z|k|mk|a|fi|c|tc)?sh|busybox|su|runuser|python[0-9.]*|perl|ruby|node|php)"
)
_CODE_OPTION: Final = re.compile(r"-[A-Za-z]*[cer]|--(?:command|eval|exec)=?")
_SSH_TAKES_VALUE: Final = re.compile(r"-[A-Za-z]*[BbcDEeFIiJLlmOoPpRSWw]")
_NAME_CHAR: Final = re.compile(r"[A-Za-z_0-9@*#?$!-]")
_DELIMITER_END: Final = frozenset(" \t\n;&|<>()")


_GONE: Final = "\1"
_KEPT: Final = "\2"
"""In a word: an expansion. Without quotes (the first) it may leave nothing behind, not even a word."""
_EXPANSIONS: Final = {ord(_GONE): None, ord(_KEPT): None}


@attrs.define
class _Command:
    """The simple command being read. Quotes are gone from its words, and expansions too, unless they are all
    of one."""

    words: list[str] = attrs.field(factory=list)
    word: str | None = None
    is_target: bool = False  # the next word belongs to a redirection
    expands_twice: bool = False  # and it is one of `>&word`: bash expands what the word expanded to

    def add(self, text: str) -> None:
        self.word = (self.word or "") + text

    def end_word(self) -> str | None:
        word, self.word = self.word, None
        if word is None:
            return None
        if self.is_target:
            self.is_target = self.expands_twice = False
            return None
        text = word.translate(_EXPANSIONS)
        self.words.append(text if text or _GONE not in word or _KEPT in word else _GONE)
        return text

    def end(self) -> None:
        self.end_word()
        self.words, self.is_target, self.expands_twice = [], False, False

    def named(self) -> list[str]:
        """From the command's name on: without reserved words, assignments and what may vanish in front."""
        at = 0
        while at < len(self.words) and self._is_before_name(self.words[at]):
            at += 1
        return self.words[at:]

    def _is_before_name(self, word: str) -> bool:
        return word in _RESERVED or word == _GONE or _ASSIGNMENT.match(word) is not None

    def judge(self) -> Context | None:
        """What is wrong with a value in the current word, if anything."""
        if self.is_target:
            return Context.AGAIN if self.expands_twice else None
        words = self.named()
        prefix = self.word or ""
        is_assignment = _ASSIGNMENT.match(prefix) is not None
        if not words or all(word in _RUNS_NEXT for word in words):
            return None if is_assignment else Context.COMMAND
        again = self.runs_again()
        if again is not None:
            return again
        if words[0] in _TAKES_NAMES and (not is_assignment or "-i" in words):
            return Context.VARIABLE
        if words[-1] == "-v" and words[0] in ("[", "test", "printf"):
            return Context.VARIABLE
        return None

    def runs_again(self) -> Context | None:
        words = self.named()
        if not words or self.is_target:
            return None
        if words[0] in _EVALUATES or any(word in ("eval", "[[") for word in words):
            return Context.AGAIN
        if _CODE_OPTION.fullmatch(words[-1]) and any(_INTERPRETER.fullmatch(word) for word in words[:-1]):
            return Context.AGAIN
        if words[0] == "ssh" and _ssh_has_host(words):
            return Context.REMOTE
        return None


def _ssh_has_host(words: list[str]) -> bool:
    at = 1
    while at < len(words):
        if not words[at].startswith("-"):
            return True
        at += 2 if _SSH_TAKES_VALUE.fullmatch(words[at]) else 1
    return False


class Lexer:
    """Reads one text once."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._found: list[Found] = []
        self._heredocs: list[tuple[str, bool, bool]] = []  # delimiter, tabs are stripped, quoted
        self._commands: list[_Command] = []

    def read(self) -> tuple[Found, ...]:
        """The place of every hole, in order."""
        try:
            self._script("")
        except (_Unclear, RecursionError) as unclear:
            why = str(unclear) if isinstance(unclear, _Unclear) else "nested too deeply"
            left = self._text.count(HOLE) - len(self._found)
            self._found.extend([Found(Context.UNCLEAR, why)] * left)
        return tuple(self._found)

    def _peek(self, ahead: int = 0) -> str:
        at = self._at + ahead
        return self._text[at] if at < len(self._text) else ""

    def _hole(self, context: Context) -> None:
        """The text's next hole. Where a value would be safe by its quotes, the command around it has a
        say."""
        if context in (Context.WORD, Context.DOUBLE):
            here = self._commands[-1].judge()
            outer = (command.runs_again() for command in self._commands[:-1])
            context = here or next((found for found in outer if found is not None), None) or context
        self._found.append(Found(context))

    def _holes(self, text: str, context: Context) -> None:
        for _ in range(text.count(HOLE)):
            self._hole(context)

    # ── commands ─────────────────────────────────────────────────────────────────────────────────
    def _script(self, end: str) -> None:
        """Commands up to `end` (`)` or the end of the text)."""
        if self._heredocs:
            raise _Unclear("a here-document that begins on the line of a (…)")
        command = _Command()
        self._commands.append(command)
        cases = 0
        while True:
            char = self._peek()
            if char == "":
                if end:
                    raise _Unclear(f"a '{end}' is missing")
                break
            if char == ")":
                command.end()
                self._at += 1
                if end and not cases:
                    break
                if not cases:
                    raise _Unclear("a ')' without its '('")
            elif char in " \t":
                cases += self._end_word(command, end)
                self._at += 1
            elif char in "\n;&|":
                cases += self._end_word(command, end)
                command.end()
                self._at += 1
                if char == "\n":
                    self._read_heredocs()
            elif char == "#" and command.word is None:
                self._comment()
            elif char == "(":
                self._open(command)
            elif char in "<>":
                self._redirection(command)
            else:
                self._word_part(command)
        self._end_word(command, end)
        self._commands.pop()
        if end and self._heredocs:
            raise _Unclear("a here-document whose text is outside of its (…)")

    def _end_word(self, command: _Command, end: str) -> int:
        """How the depth of `case` changes by the word that ends here."""
        at_name = not command.named()
        word = command.end_word()
        if not at_name or word not in ("case", "esac"):
            return 0
        if end:
            raise _Unclear("a `case` inside (…)")
        return 1 if word == "case" else -1

    def _word_part(self, command: _Command) -> None:
        char = self._peek()
        if char == HOLE:
            self._hole(Context.WORD)
            command.add(HOLE)
            self._at += 1
        elif char == "\\":
            self._escape(command)
        elif char == "'":
            command.add(self._single())
        elif char == '"':
            self._double(command)
        elif char == "$":
            self._dollar(command, in_double=False)
        elif char == "`":
            self._backtick(command, in_double=False)
        else:
            command.add(char)
            self._at += 1

    def _open(self, command: _Command) -> None:
        """A `(` outside of quotes."""
        if self._peek(1) == "(":
            raise _Unclear("'((' is arithmetic in some shells")
        self._refuse_continued(1)
        if command.word is not None or command.words:
            if re.match(r"\([ \t]*\)", self._text[self._at :]) is None:
                raise _Unclear("a '(' inside a command")
            self._at = self._text.index(")", self._at) + 1  # a function's head
            command.end()
            return
        self._at += 1
        self._script(")")
        command.words.append("()")  # what follows belongs to the group, and is not a command's name

    def _redirection(self, command: _Command) -> None:
        # A number before it (`2>`) is no word of its own.
        if command.word is not None and command.word.isdigit():
            command.word = None
        self._end_word(command, "")
        for operator in ("<<<", "<<-", "<<", ">>", "<>", ">|", ">&", "<&", "<", ">"):
            if self._text.startswith(operator, self._at):
                break
        self._at += len(operator)
        self._refuse_continued(0)
        if operator in ("<", ">") and self._peek() == "(":
            raise _Unclear("a process substitution")
        if operator in ("<<", "<<-"):
            self._delimiter(strip=operator == "<<-")
        else:
            command.is_target = True
            command.expands_twice = operator in (">&", "<&")

    # ── quotes and expansions ────────────────────────────────────────────────────────────────────
    def _escape(self, command: _Command) -> None:
        following = self._peek(1)
        self._at += 2
        if following == "\n":
            return  # the line goes on; this is no part of a word
        if following == HOLE:
            self._hole(Context.ESCAPED)
        command.add(following)

    def _single(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise _Unclear("a ' is missing")
        inner = self._text[self._at + 1 : end]
        self._holes(inner, Context.SINGLE)
        self._refuse_line_end(inner)
        self._at = end + 1
        return inner

    def _double(self, command: _Command, context: Context = Context.DOUBLE) -> None:
        command.add("")
        self._at += 1
        while True:
            char = self._peek()
            if char == "":
                raise _Unclear('a " is missing')
            if char == '"':
                self._at += 1
                return
            if char == "\\":
                if self._peek(1) == HOLE:
                    self._hole(Context.ESCAPED)
                command.add(self._peek(1))
                self._at += 2
            elif char == "$":
                self._dollar(command, in_double=True)
            elif char == "`":
                self._backtick(command, in_double=True)
            else:
                if char == HOLE:
                    self._hole(context)
                self._refuse_line_end(char)
                command.add(char)
                self._at += 1

    def _dollar(self, command: _Command, *, in_double: bool) -> None:
        following, start = self._peek(1), self._at
        self._refuse_continued(1)
        if following == HOLE:
            self._hole(Context.ESCAPED)
            self._at += 2
        elif following == "(" and self._peek(2) == "(":
            self._arithmetic()
        elif following == "(":
            self._refuse_continued(2)
            self._at += 2
            self._script(")")
        elif following == "{":
            self._parameter(command, in_double=in_double)
        elif following == "[":
            raise _Unclear("$[…]")
        elif following == "'" and not in_double:
            self._at += 1
            if "\\" in self._single():
                raise _Unclear("an escape in $'…', which shells read differently")
        elif _NAME_CHAR.match(following):
            self._at += 2
        else:
            self._at += 1
        # `"$@"` leaves nothing behind when there are no arguments, quotes or not.
        kept = in_double and "@" not in self._text[start : self._at]
        command.add(_KEPT if kept else _GONE)

    def _arithmetic(self) -> None:
        self._at += 3
        depth = 2
        while depth:
            char = self._peek()
            if char == "" or char in "'\"`\\#":
                raise _Unclear("quotes in $((…))" if char else "a '))' is missing")
            if char == HOLE:
                self._hole(Context.ARITHMETIC)
            depth += (char == "(") - (char == ")")
            self._at += 1

    def _parameter(self, command: _Command, *, in_double: bool) -> None:
        """`${…}`: nothing inside is substituted, only its end is looked for."""
        self._at += 2
        while True:
            char = self._peek()
            if char == "":
                raise _Unclear("a '}' is missing")
            if char == "}":
                self._at += 1
                return
            if char == "\\":
                self._escape(_Command())
            elif char in "'\"" and in_double:
                raise _Unclear("quotes in ${…} in double quotes, which shells read differently")
            elif char == "'":
                self._single()
            elif char == '"':
                self._double(_Command(), Context.PARAMETER)
            elif char == "$":
                self._dollar(_Command(), in_double=in_double)
            elif char == "`":
                self._backtick(command, in_double=in_double)
            else:
                if char == HOLE:
                    self._hole(Context.PARAMETER)
                self._at += 1

    def _backtick(self, command: _Command, *, in_double: bool) -> None:
        self._at += 1
        while True:
            char = self._peek()
            if char == "":
                raise _Unclear("a ` is missing")
            self._at += 1
            if char == "`":
                command.add(_KEPT if in_double else _GONE)
                return
            if char == "\\":
                char = self._peek()
                self._at += 1
            if char == HOLE:
                self._hole(Context.BACKTICK)

    def _comment(self) -> None:
        end = self._text.find("\n", self._at)
        end = len(self._text) if end < 0 else end
        self._holes(self._text[self._at : end], Context.COMMENT)
        self._at = end

    def _refuse_line_end(self, text: str) -> None:
        if self._heredocs and "\n" in text:
            raise _Unclear("a line end in quotes on the line of a here-document")

    def _refuse_continued(self, ahead: int) -> None:
        """An operator's characters may be on two lines; what they then are is not looked into."""
        if self._peek(ahead) == "\\" and self._peek(ahead + 1) == "\n":
            raise _Unclear("an operator that is continued on the next line")

    # ── here-documents ───────────────────────────────────────────────────────────────────────────
    def _delimiter(self, *, strip: bool) -> None:
        while self._peek() in (" ", "\t"):
            self._at += 1
        delimiter, quoted = "", False
        while (char := self._peek()) and char not in _DELIMITER_END:
            if char in "'\"":
                end = self._text.find(char, self._at + 1)
                inner = self._text[self._at + 1 : end] if end > 0 else "\n"
                if any(odd in inner for odd in "\n\\$`"):
                    raise _Unclear("the end word of a here-document")
                delimiter, quoted = delimiter + inner, True
                self._at = end + 1
            elif char in "\\$`":
                raise _Unclear("the end word of a here-document")
            else:
                delimiter += char
                self._at += 1
        if not delimiter or HOLE in delimiter:
            raise _Unclear("the end word of a here-document")
        self._heredocs.append((delimiter, strip, quoted))

    def _read_heredocs(self) -> None:
        """At the start of a line: the texts of the here-documents of the line before."""
        heredocs, self._heredocs = self._heredocs, []
        for delimiter, strip, quoted in heredocs:
            while self._at < len(self._text):
                end = self._text.find("\n", self._at)
                end = len(self._text) if end < 0 else end
                line = self._text[self._at : end]
                self._holes(line, Context.HEREDOC)
                self._at = min(end + 1, len(self._text))
                if not quoted and line.endswith("\\"):
                    raise _Unclear("a line of a here-document that goes on in the next")
                if (line.lstrip("\t") if strip else line) == delimiter:
                    break
