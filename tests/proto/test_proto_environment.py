"""The environment that travels: nothing of who or where, nothing of swamp, whatever the patterns say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swamp_proto.environment import (
    DENIED_NAMES,
    DENIED_PREFIXES,
    WITHHELD_NAMES,
    WITHHELD_PREFIXES,
    host_part,
    is_denied,
    overlay,
    snapshot,
)

STAYS = """
    HOME USER USERNAME USERPROFILE LOGNAME SHELL PATH PWD OLDPWD SHLVL TMPDIR TEMP TMP HOSTNAME TERM _
    XDG_RUNTIME_DIR SWAMP_WORKER_TOKEN SWAMP_SERVE_URL SWAMP_FENCE SSH_AUTH_SOCK SSH_CONNECTION
    LD_PRELOAD LD_LIBRARY_PATH PYTHONPATH PYTHONHOME NODE_OPTIONS DBUS_SESSION_BUS_ADDRESS VIRTUAL_ENV
    DYLD_INSERT_LIBRARIES BASH_ENV BASH_FUNC_x%% NOTIFY_SOCKET LISTEN_FDS SystemRoot windir path Home
    ProgramFiles(x86) KUBERNETES_SERVICE_HOST SUDO_USER SUDO_UID TERM_PROGRAM TERMCAP LESSOPEN GLIBC_TUNABLES PYENV_VERSION
    GIT_INDEX_FILE KRB5CCNAME CREDENTIALS_DIRECTORY SYSTEMD_EXEC_PID JAVA_HOME container
""".split()  # noqa: SIM905 - names read better as words
TRAVELS = [
    "AWS_REGION",
    "LANG",
    "LC_ALL",
    "TZ",
    "HTTP_PROXY",
    "no_proxy",
    "MY_PATH",
    "HOMEPAGE",
    "API_KEY",
    "CI",
    "X",
]

names = st.text(st.characters(codec="utf-8", exclude_characters="=\0"), min_size=1, max_size=12)
values = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
environments = st.dictionaries(names | st.sampled_from(STAYS + TRAVELS), values, max_size=12)


@pytest.mark.parametrize("name", STAYS)
def test_identity_host_shell_loader_interpreter_and_swamp_stay_here(name: str) -> None:
    assert is_denied(name)
    assert snapshot({name: "x"}) == {}
    assert snapshot({name: "x"}, allow=[name, "*"]) == {}
    assert overlay({}, {name: "x"}) == {}


@pytest.mark.parametrize("name", TRAVELS)
def test_everything_else_travels(name: str) -> None:
    assert snapshot({name: "x"}) == {name: "x"}
    assert overlay({name: "own"}, {name: "shipped"}) == {name: "shipped"}


def test_patterns_narrow_and_deny_wins() -> None:
    environ = {"AWS_REGION": "1", "AWS_SECRET": "2", "LANG": "3", "aws_lower": "4"}
    assert snapshot(environ, allow=["AWS_*"]) == {"AWS_REGION": "1", "AWS_SECRET": "2", "aws_lower": "4"}
    assert snapshot(environ, deny=["*SECRET*"]) == {"AWS_REGION": "1", "LANG": "3", "aws_lower": "4"}
    assert snapshot(environ, allow=["aws_*"], deny=["AWS_SECRET"]) == {"AWS_REGION": "1", "aws_lower": "4"}
    assert snapshot(environ, allow=["NOTHING"]) == {}


@pytest.mark.parametrize(
    ("name", "value"), [("A", "\udcff"), ("\udcff", "x"), ("A", "a\0b"), ("A=B", "x"), ("", "x")]
)
def test_what_is_not_text_or_no_variable_stays_behind(name: str, value: str) -> None:
    assert snapshot({name: value, "OK": "1"}) == {"OK": "1"}
    assert overlay({}, {name: value, "OK": "1"}) == {"OK": "1"}


def test_the_holder_keeps_its_host_and_withholds_what_is_its_own() -> None:
    own = {
        "PATH": "/usr/bin",
        "HOME": "/home/w",
        "LD_LIBRARY_PATH": "/opt/cuda/lib",
        "LANG": "C",
        "SWAMP_WORKER_TOKEN": "secret",
        "SWAMP_SERVER_TOKEN": "secret",
        "SWAMP_ORCHESTRATOR_URL": "ws://x",
        "PYTHONPATH": "/swamp",
        "PYTHONUNBUFFERED": "1",
        "VIRTUAL_ENV": "/swamp/venv",
        "NOTIFY_SOCKET": "/run/x",
        "LISTEN_FDS": "1",
        "OLDPWD": "/",
        "SYSTEMD_EXEC_PID": "7",
    }
    shipped = {"LANG": "de_DE", "PATH": "/evil", "LD_PRELOAD": "/evil.so", "REGION": "eu"}
    assert overlay(own, shipped) == {
        "PATH": "/usr/bin",
        "HOME": "/home/w",
        "LD_LIBRARY_PATH": "/opt/cuda/lib",
        "LANG": "de_DE",
        "REGION": "eu",
    }


@given(environments)
def test_at_home_a_step_gets_by_its_snapshot_what_any_other_gets(environ: dict[str, str]) -> None:
    assert not set(host_part(environ)) & set(snapshot(environ))
    assert overlay(host_part(environ), snapshot(environ, deny=["*"])) == overlay(host_part(environ), {})
    shown = overlay(host_part(environ), snapshot(environ))
    assert shown == overlay({name: value for name, value in environ.items() if name in shown}, {})


def test_the_tables_are_in_the_form_they_are_compared_in() -> None:
    for name in (*DENIED_NAMES, *DENIED_PREFIXES, *WITHHELD_NAMES, *WITHHELD_PREFIXES):
        assert name == name.upper()
    assert WITHHELD_NAMES <= DENIED_NAMES
    assert set(WITHHELD_PREFIXES) <= set(DENIED_PREFIXES)
    assert not [name for name in DENIED_NAMES if name.startswith(DENIED_PREFIXES)], "said twice"


@given(environments, environments, st.lists(st.text(max_size=4)), st.lists(st.text(max_size=4)))
def test_whatever_the_patterns_nothing_denied_travels_and_no_argument_is_changed(
    environ: dict[str, str], own: dict[str, str], allow: list[str], deny: list[str]
) -> None:
    before = (dict(environ), dict(own))
    shipped = snapshot(environ, allow, deny)
    assert shipped.items() <= environ.items()
    assert not any(map(is_denied, shipped))
    assert list(shipped) == sorted(shipped)
    found = overlay(own, shipped)
    assert shipped.items() <= found.items()
    assert found.items() - shipped.items() <= own.items()
    assert (environ, own) == before
    assert overlay(own, environ).items() >= overlay(own, snapshot(environ)).items()
