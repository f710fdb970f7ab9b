"""Which environment variables travel to the place where a step runs, and what they become there.

Two pure functions. The orchestrator takes a `snapshot` of its own environment for one step; the holder lays
it over its own with `overlay`. Names are compared in upper case.

Rules
- A denied name never travels and is ignored when it arrives: who the process is, where it runs, how its
  shell, loader, interpreter and service manager are set up, and everything of swamp's own. Patterns can
  narrow the snapshot, never widen it past the fixed list.
- The holder keeps its own host (PATH, HOME, TMPDIR, library paths), but nothing that tells a step who the
  holder is: its token, its interpreter's settings, its service manager's sockets.
- Text only: a variable that is not Unicode, or that no environment can hold, stays behind.

It does not know about secrets, bindings or the `SWAMP_FENCE` family: the executor adds those afterwards.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

# Who runs, where, in which shell and terminal, with which loader, interpreter, service manager; then Windows.
DENIED_NAMES: Final[frozenset[str]] = frozenset(
    """
    HOME USER USERNAME USERPROFILE LOGNAME MAIL DOAS_USER PKEXEC_UID
    PWD OLDPWD PATH MANPATH INFOPATH HOSTNAME HOST HOSTTYPE MACHTYPE OSTYPE TMPDIR TEMP TMP CONTAINER
    SHELL SHLVL _ COLORTERM COLUMNS LINES LS_COLORS WINDOWID WINDOWPATH DISPLAY WAYLAND_DISPLAY XAUTHORITY ICEAUTHORITY
    DESKTOP_SESSION GDMSESSION SESSION_MANAGER GPG_AGENT_INFO GPG_TTY KRB5CCNAME STY TMUX TMUX_PANE VTE_VERSION
    ENV ZDOTDIR INPUTRC HISTFILE IFS CDPATH GLOBIGNORE SHELLOPTS BASHOPTS PROMPT_COMMAND PROMPT PS1 PS2 PS3 PS4
    EDITOR VISUAL PAGER LESSOPEN LESSCLOSE
    GLIBC_TUNABLES GCONV_PATH GETCONF_DIR LOCPATH NLSPATH HOSTALIASES LOCALDOMAIN RES_OPTIONS
    VIRTUAL_ENV VIRTUAL_ENV_PROMPT PERL5LIB PERL5OPT PERL5DB RUBYLIB RUBYOPT GEM_HOME GEM_PATH LUA_PATH LUA_CPATH
    JAVA_HOME JAVA_TOOL_OPTIONS _JAVA_OPTIONS JDK_JAVA_OPTIONS CLASSPATH CARGO_HOME RUSTUP_HOME GOROOT GOPATH
    GIT_EXEC_PATH GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY GIT_PREFIX
    NOTIFY_SOCKET INVOCATION_ID JOURNAL_STREAM MAINPID MANAGERPID CREDENTIALS_DIRECTORY FDSTORE
    RUNTIME_DIRECTORY STATE_DIRECTORY CACHE_DIRECTORY LOGS_DIRECTORY CONFIGURATION_DIRECTORY
    SYSTEMROOT SYSTEMDRIVE WINDIR COMSPEC PATHEXT APPDATA LOCALAPPDATA PROGRAMDATA PROGRAMFILES
    PROGRAMFILES(X86) PROGRAMW6432 COMPUTERNAME HOMEDRIVE HOMEPATH OS PUBLIC ALLUSERSPROFILE
    NUMBER_OF_PROCESSORS USERDOMAIN LOGONSERVER
    """.split()  # noqa: SIM905 - so many names read better as words
)

DENIED_PREFIXES: Final[tuple[str, ...]] = (
    "SWAMP_",
    "XDG_",
    "DBUS_",
    "SSH_",
    "SUDO_",
    "TERM",  # TERM, TERMCAP, TERM_PROGRAM
    "WSL",
    "LD_",
    "DYLD_",
    "MALLOC_",
    "PYTHON",
    "NODE_",
    "DENO_",
    "CONDA_",
    "PYENV_",
    "RBENV_",
    "NVM_",
    "BASH_",  # BASH_ENV and exported functions
    "SYSTEMD_",
    "LISTEN_",
    "WATCHDOG_",
    "KUBERNETES_",  # of the cluster the orchestrator lives in
    "PROCESSOR_",
    "COMMONPROGRAM",
)

WITHHELD_NAMES: Final[frozenset[str]] = frozenset(
    """
    PWD OLDPWD SHLVL _ VIRTUAL_ENV VIRTUAL_ENV_PROMPT NOTIFY_SOCKET INVOCATION_ID JOURNAL_STREAM MAINPID
    CREDENTIALS_DIRECTORY
    """.split()  # noqa: SIM905 - as above
)
"""Of the holder's own environment: what its steps do not see, beside `WITHHELD_PREFIXES`."""

WITHHELD_PREFIXES: Final[tuple[str, ...]] = ("SWAMP_", "PYTHON", "LISTEN_", "WATCHDOG_", "SYSTEMD_")


def is_denied(name: str) -> bool:
    """Whether a variable of this name never travels."""
    upper = name.upper()
    return upper in DENIED_NAMES or upper.startswith(DENIED_PREFIXES)


def snapshot(
    environ: Mapping[str, str], allow: Iterable[str] = (), deny: Iterable[str] = ()
) -> dict[str, str]:
    """The part of `environ` that may travel with a dispatch, by name.

    `allow` and `deny` are shell patterns (`AWS_*`), compared without case. No `allow` means all; `deny` wins
    over `allow`, and the fixed list over both.
    """
    allowed = tuple(pattern.upper() for pattern in allow)
    denied = tuple(pattern.upper() for pattern in deny)
    found = {}
    for name in sorted(environ):
        upper, value = name.upper(), environ[name]
        if is_denied(name) or not _can_travel(name, value):
            continue
        if allowed and not any(fnmatchcase(upper, pattern) for pattern in allowed):
            continue
        if any(fnmatchcase(upper, pattern) for pattern in denied):
            continue
        found[name] = value
    return found


def host_part(environ: Mapping[str, str]) -> dict[str, str]:
    """What never travels: all that a step gets from its holder where orchestrator and holder are one process. The rest comes to it as to
    any other, by the snapshot."""
    return {name: value for name, value in environ.items() if is_denied(name)}


def overlay(own: Mapping[str, str], shipped: Mapping[str, str]) -> dict[str, str]:
    """The environment of a step: the holder's `own` less what it withholds, and what was `shipped` on top.

    Denied names in `shipped` are ignored, whoever sent them.
    """
    found = {name: value for name, value in own.items() if not _is_withheld(name)}
    found.update(
        (name, value) for name, value in shipped.items() if not is_denied(name) and _can_travel(name, value)
    )
    return found


def _is_withheld(name: str) -> bool:
    upper = name.upper()
    return upper in WITHHELD_NAMES or upper.startswith(WITHHELD_PREFIXES)


def _can_travel(name: str, value: str) -> bool:
    if not name or "=" in name or "\0" in name or "\0" in value:
        return False
    try:
        name.encode()
        value.encode()
    except UnicodeEncodeError:  # bytes that are not UTF-8 reach Python as lone surrogates
        return False
    return True
