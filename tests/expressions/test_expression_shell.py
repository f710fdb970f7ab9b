"""Expressions in shell text: where they may stand, what the shell gets, that data never becomes a command.

The property tests run real shells (`sh`, and `bash` where there is one) in an empty folder. The payload makes
files in every way a misquoted value could; an empty folder afterwards is the proof.
"""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from swamp_orch.expressions.scope import Scope
from swamp_orch.expressions.secret import Secret, SecretRef
from swamp_orch.expressions.shell import evaluate_shell, shell_problems
from swamp_orch.expressions.shell_lexer import HOLE, Context, Lexer
from swamp_orch.expressions.template import ExpressionError, parse
from swamp_proto.limits import SHELL_VALUE_MAX

SHELLS = [shell for shell in ("sh", "bash", "dash") if shutil.which(shell)]


def scope(**inputs: Any) -> Scope:
    return Scope(values={"inputs": inputs})


def contexts(text: str) -> list[Context]:
    return [found.context for found in Lexer(text.replace("@", HOLE)).read()]


CASES: list[tuple[str, Context]] = [
    ("echo @", Context.WORD),
    ("echo a@b", Context.WORD),
    ("echo 'a'@\"b\"", Context.WORD),
    ('echo "x @ y"', Context.DOUBLE),
    ('echo "it\'s @"', Context.DOUBLE),
    ('echo "$(cat @)"', Context.WORD),
    ('echo "$(cat "@")"', Context.DOUBLE),
    ("X=@ cmd", Context.WORD),
    ("export X=@", Context.WORD),
    ("cat < @ > out", Context.WORD),
    ("cmd 2>@", Context.WORD),
    ("cmd 2>&1 @", Context.WORD),
    ("for x in @; do echo $x; done", Context.WORD),
    ("if [ @ = a ]; then :; fi", Context.WORD),
    ("if test -n @; then :; fi", Context.WORD),
    ("case @ in a) ;; esac", Context.WORD),
    ("case $x in a) echo @ ;; b) echo b ;; esac", Context.WORD),
    ("f() { echo @; }; f", Context.WORD),
    ("(cd /; echo @)", Context.WORD),
    ("(a)# it's\necho @", Context.WORD),
    ("echo a#b @", Context.WORD),
    ("echo $# @", Context.WORD),
    ("echo ${#x} @", Context.WORD),
    ("echo ''#@", Context.WORD),
    ("echo \\\n @", Context.WORD),
    ("echo \\# @", Context.WORD),
    ("echo $((1 + (2 * 3))) @", Context.WORD),
    ("echo `date` @", Context.WORD),
    ("echo ${x:-'}'} @", Context.WORD),
    ('echo "${x:-y}" @', Context.WORD),
    ("cat <<EOF\nit's\nEOF\necho @", Context.WORD),
    ("cat <<-'E F'\n\tit's\n\tE F\necho @", Context.WORD),
    ("cat <<A <<B\n'\nA\n\"\nB\necho @", Context.WORD),
    ("cat <<< @", Context.WORD),
    ("cmd && cmd || cmd @ | cmd & wait", Context.WORD),
    ("sh -c 'echo \"$1\"' sh @", Context.WORD),
    ("ssh -p 22 @ uptime", Context.WORD),
    ("echo $'a' @", Context.WORD),
    ("# it's @", Context.COMMENT),
    ("echo a # @", Context.COMMENT),
    ("echo a;# @", Context.COMMENT),
    ("echo \\\n# it's @", Context.COMMENT),
    ("echo '@'", Context.SINGLE),
    ("echo \"a\"'@'", Context.SINGLE),
    ("sh -c 'echo @'", Context.SINGLE),
    ("echo $'@'", Context.SINGLE),
    ("cat <<EOF\n@\nEOF", Context.HEREDOC),
    ("cat <<'EOF'\n$(echo @)\nEOF", Context.HEREDOC),
    ("echo $((@ + 1))", Context.ARITHMETIC),
    ('echo "$((@))"', Context.ARITHMETIC),
    ("echo `echo @`", Context.BACKTICK),
    ('echo "`echo @`"', Context.BACKTICK),
    ("echo ${x:-@}", Context.PARAMETER),
    ('echo ${x:-"@"}', Context.PARAMETER),
    ('echo "${x#@}"', Context.PARAMETER),
    ("echo \\@", Context.ESCAPED),
    ('echo "\\@"', Context.ESCAPED),
    ("echo $@", Context.ESCAPED),
    ('echo "$@"', Context.ESCAPED),
    ("@ --version", Context.COMMAND),
    ("X=1 @", Context.COMMAND),
    ("if @; then :; fi", Context.COMMAND),
    ("echo a; ./bin/@.sh", Context.COMMAND),
    ("$x @", Context.COMMAND),  # where $x is empty, the value would be the command
    ('"$x" @', Context.WORD),
    ("$x echo @", Context.WORD),
    ("``eval @", Context.AGAIN),
    ("exec @", Context.COMMAND),
    ("sudo @", Context.COMMAND),
    ("@=1 cmd", Context.COMMAND),
    ("a[@]=1", Context.COMMAND),
    ("read @", Context.VARIABLE),
    ("export @", Context.VARIABLE),
    ("printf -v @ x", Context.VARIABLE),
    ("eval echo @", Context.AGAIN),
    ('eval "$(echo @)"', Context.AGAIN),
    ('sh -c "echo @"', Context.AGAIN),
    ("docker exec c /bin/bash -lc @", Context.AGAIN),
    ("python3 -c \"print('@')\"", Context.AGAIN),
    ("[[ @ -eq 1 ]]", Context.AGAIN),
    ("trap @ EXIT", Context.AGAIN),
    ("echo a >&@", Context.AGAIN),  # bash expands the value once more: found by the test below
    ("echo a 2>& @", Context.AGAIN),
    ('ssh -p 22 host "cat @"', Context.REMOTE),
    ("ssh host @", Context.REMOTE),
    ("((@))", Context.UNCLEAR),
    ("echo $[@]", Context.UNCLEAR),
    ("echo $'a\\'b' @", Context.UNCLEAR),
    ("a=(1 2 @)", Context.UNCLEAR),
    ("echo ) @", Context.UNCLEAR),
    ("$(case x in a) echo @;; esac)", Context.UNCLEAR),
    ("echo 'open @", Context.UNCLEAR),
    ("echo \"${x:-'a'} @\"", Context.UNCLEAR),
    ("diff <(cat @) b", Context.UNCLEAR),
    ("cat <<$X\n@\n$X", Context.UNCLEAR),
    ('cat <<A "x\ny" @\nA', Context.UNCLEAR),
    ("$(" * 4000 + "@", Context.UNCLEAR),
]


@pytest.mark.parametrize(("text", "context"), CASES, ids=[text[:40] for text, _ in CASES])
def test_the_lexer_knows_where_a_value_stands(text: str, context: Context) -> None:
    assert contexts(text)[-1] is context


def test_all_arguments_may_be_none_even_in_quotes() -> None:
    for text in ('"$@" ' + HOLE, '"${@}" ' + HOLE):
        assert Lexer(text).read()[0].context is Context.COMMAND


def test_every_context_has_a_case() -> None:
    assert {context for _, context in CASES} == set(Context)


def test_what_the_shell_gets_w12() -> None:
    text = parse('echo ${{ inputs.a }} "x ${{ inputs.b }}" ${{ inputs.a }} # ${{ inputs.c }}')
    made = evaluate_shell(text, scope(a="1; rm -rf /", b="$(id)"))
    assert made.script == 'echo "${__SWAMP_1}" "x ${__SWAMP_2}" "${__SWAMP_1}" # ...'
    assert made.bindings == {"__SWAMP_1": "1; rm -rf /", "__SWAMP_2": "$(id)"}
    assert made.display == 'echo 1; rm -rf / "x $(id)" 1; rm -rf / # ...'
    assert made.resolve(lambda ref: "never") == made.bindings


def test_secrets_are_variables_and_stars() -> None:
    text = parse(
        'curl -H "Authorization: Bearer ${{ vault.get("v", "k") }}" ${{ "u:" + vault.get("v", "p") }}'
    )
    made = evaluate_shell(text, Scope())
    assert made.script == 'curl -H "Authorization: Bearer ${__SWAMP_1}" "${__SWAMP_2}"'
    assert made.display == 'curl -H "Authorization: Bearer ***" u:***'
    assert made.bindings["__SWAMP_2"] == Secret(("u:", SecretRef("v", "p")))
    assert made.resolve(lambda ref: ref.key.upper()) == {"__SWAMP_1": "K", "__SWAMP_2": "u:P"}
    assert "vault" not in repr(made)


def test_a_whole_expression_is_the_command_itself() -> None:
    made = evaluate_shell(parse("${{ inputs.run }}"), scope(run="echo '${{ inputs.x }}' $HOME"))
    assert (made.script, made.bindings) == ("echo '${{ inputs.x }}' $HOME", {})
    made = evaluate_shell(parse("${{ vault.get('v', 'k') }}"), Scope())
    assert made.script == 'eval "${__SWAMP_1}"' and made.display == "***"
    with pytest.raises(ExpressionError, match="must be text"):
        evaluate_shell(parse("${{ 3 }}"), Scope())


def test_raw_pastes_and_is_checked() -> None:
    made = evaluate_shell(
        parse("${{ raw(inputs.flags) }} ls ${{ inputs.x }}"), scope(flags="sudo -n", x="a b")
    )
    assert made.script == 'sudo -n ls "${__SWAMP_1}"' and made.display == "sudo -n ls a b"
    with pytest.raises(ExpressionError, match="changes the quoting"):
        evaluate_shell(parse("echo ${{ raw(inputs.q) }} ${{ inputs.x }}"), scope(q="'", x="a"))
    with pytest.raises(ExpressionError, match="cannot paste a secret"):
        evaluate_shell(parse("echo ${{ raw(vault.get('v', 'k')) }} x"), Scope())


def test_a_misplaced_expression_is_an_error_that_suggests_env_or_raw() -> None:
    text = parse("echo a\necho '${{ inputs.x }}' $((${{ inputs.y }} + 1))", "models/m.yaml:4")
    first, second = shell_problems(text)
    assert str(first).startswith("models/m.yaml:4: expression `inputs.x` stands in single quotes")
    assert "line 2, column 7" in str(first) and "arithmetic" in str(second)
    assert first.hint is not None and "env:" in first.hint and "raw(inputs.x)" in first.hint
    with pytest.raises(ExpressionError, match="single quotes"):
        evaluate_shell(text, scope(x="1", y="2"))


def test_a_value_that_is_too_large_is_an_error_that_names_the_expression() -> None:
    text = parse("echo ${{ inputs.big }}", "m.yaml:1")
    evaluate_shell(text, scope(big="x" * SHELL_VALUE_MAX))
    with pytest.raises(ExpressionError, match=r"m\.yaml:1: the value of expression `inputs.big` is 100 KiB"):
        evaluate_shell(text, scope(big="x" * (SHELL_VALUE_MAX + 1)))
    secret = evaluate_shell(parse("echo ${{ vault.get('v', 'k') }}"), Scope())
    with pytest.raises(ExpressionError, match=r"vault\.get"):
        secret.resolve(lambda ref: "x" * (SHELL_VALUE_MAX + 1))
    many = evaluate_shell(
        parse("echo " + " ".join(f"${{{{ inputs.x + '{n}' }}}}" for n in range(11))),
        scope(x="x" * (SHELL_VALUE_MAX - 2)),
    )
    with pytest.raises(ExpressionError, match="together"):
        many.resolve(lambda ref: "")


def test_values_no_variable_can_hold_are_errors() -> None:
    for bad, said in (("a\0b", "NUL"), ("\ud800", "Unicode")):
        with pytest.raises(ExpressionError, match=said):
            evaluate_shell(parse("echo ${{ inputs.x }}"), scope(x=bad))


# ── real shells ──────────────────────────────────────────────────────────────────────────────────


def run(shell: str, script: str, bindings: dict[str, str]) -> tuple[bytes, list[str]]:
    """Output, and the files the script left in its folder."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [shell, "-c", script],
            env={"PATH": "/usr/bin:/bin", **bindings},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            timeout=60,
        )
        return done.stdout, sorted(path.name for path in Path(folder).iterdir())


WRAPPERS = [
    "printf %s @",
    'printf %s "@"',
    "printf %s x@y",
    'X=@; printf %s "$X"',
    'printf %s "$(printf %s @; echo .)"',
    "# it's a \"trap\n(printf %s @)",
    "if [ @ = @ ]; then printf %s @; fi",
    'case @ in "@") printf %s @ ;; *) printf no ;; esac',
    "cat <<EOF >&2\nit's\nEOF\nprintf %s @ | cat",
    'for x in @; do printf %s "$x"; done',
    'f() { printf %s "$1"; }; f @',
    "sh -c 'printf %s \"$1\"' sh @",
    "printf %s @ > out; cat < out; rm out",
]
VALUES = st.text(
    alphabet=st.one_of(
        st.sampled_from(list("'\"`$\\(){}[]<>|&;#*?!~= \t\n\r%")), st.characters(exclude_characters="\0")
    ),
    max_size=30,
).filter(lambda text: not any("\ud800" <= char <= "\udfff" for char in text))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(WRAPPERS), VALUES, st.sampled_from(SHELLS))
@example("printf %s @", "$(touch x)`touch y`;touch z", "sh")
def test_the_script_prints_exactly_the_value(wrapper: str, value: str, shell: str) -> None:
    if "$(" in wrapper:
        assume(not value.endswith("\n"))
    made = evaluate_shell(parse(wrapper.replace("@", "${{ inputs.x }}")), scope(x=value))
    output, left = run(shell, made.script, made.resolve(lambda ref: ""))
    expected = {"printf %s x@y": f"x{value}y"}.get(wrapper, value + "." if "echo ." in wrapper else value)
    assert output == expected.encode() and left == []


PAYLOAD = (
    "pwned;>pwned;'>pwned;'\">pwned;\"$(>pwned)`>pwned`\n>pwned\nEOF\n>pwned\n}>pwned;)>pwned;]]>pwned;))>pwned;"
    "a[$(>pwned)]&>pwned|>pwned"
)
PIECES = st.sampled_from(
    [
        *"'\"\"'`$\\(){}<>|&;# \n\n@@@@ae=:",
        *(
            "$(",
            "${",
            "$((",
            "))",
            "<<a\n",
            "<<'a'\n",
            "\na\n",
            "\\\n",
            "$'",
            "[[ ",
            " ]]",
            ">&",
            "2>",
            "#it's\n",
        ),
        *("case ", " in ", "esac", "if ", "then ", "fi", "eval ", "sh -c ", ": ", "echo ", "x=", "$x ", "&>"),
    ]
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(PIECES, min_size=3, max_size=16).map("".join), st.sampled_from(SHELLS))
@example("echo a >&@", "bash")
@example("``eval @", "sh")
def test_nothing_is_executed_from_a_value_whatever_the_text(text: str, shell: str) -> None:
    """Any text in which every place is safe is run with a payload that leaves a file; others are refused."""
    try:
        template = parse(text.replace("@", "${{ inputs.x }}"))
    except ExpressionError:
        return
    if template.whole is not None or not template.expressions:
        return
    if shell_problems(template):
        with pytest.raises(ExpressionError):
            evaluate_shell(template, scope(x=PAYLOAD))
        return
    computes_eval = "eval" in text and (
        "`" in text or "$(" in text
    )  # a command whose name is the word `eval`
    if computes_eval or "(){" in text.replace(" ", ""):
        return
    made = evaluate_shell(template, scope(x=PAYLOAD))
    _, left = run(shell, made.script, made.resolve(lambda ref: ""))
    assert "pwned" not in left, made.script


def test_the_payload_does_what_it_should_where_it_is_executed() -> None:
    for script in (PAYLOAD, f"echo {PAYLOAD}", f"echo '{PAYLOAD}'", f'echo "{PAYLOAD}"'):
        assert "pwned" in run("sh", script, {})[1]
