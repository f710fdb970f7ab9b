"""Random CEL expressions, compiled and evaluated: whatever is typed, the answer is a value or a `CelError`,
never the end of the process.

    python fuzz/fuzz_cel.py [--seed N] [--count N]

The expression under test is written to `--last` first, so that it is known when the process does end.
"""

import argparse
import faulthandler
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from swamp_orch.query.environment import CelError, CelType, Function, compile_expression, json_value

FUNCTIONS = [Function("show", (CelType.DYN,)), Function("m", (CelType.MAP,)), Function("l", (CelType.LIST,))]
VARIABLES = {"a": CelType.DYN, "n": CelType.INT, "s": CelType.STRING, "t": CelType.STRINGS}
DATA: dict[str, Any] = {
    "a": {"b": 1, "l": [1, 2, "x"], "m": {"k": {"j": None}}, "z": None, "f": 1.5},
    "n": 3,
    "s": "abc",
    "t": {"k": "v"},
}
ATOMS = (
    "a", "n", "s", "t", "a.b", "a.l", "a.m", "a.?b", "a.?zz", "a[?'m']", "a.?m.k", "a[?'m'].k", "1", "1.5", "'x'",
    "null", "true", "[]", "{}", "optional.none()", "optional.of(n)", "b'x'", "timestamp('2020-01-01T00:00:00Z')",
    "duration('1s')", "type(1)", "1u", "regex.extract(s,'b')", "a.l.first()", "google.protobuf.Struct{}",
    "google.protobuf.Value{}", "lists.range(3)",
)  # fmt: skip
AROUND_ONE = (
    "[@]", "[?@]", "{'k':@}", "{?'k':@}", "dyn(@)", "optional.of(@)", "optional.ofNonZeroValue(@)", "type(@)", "show(@)",
    "m(@)", "l(@)", "(@).orValue(n)", "(@).orValue(a)", "(@).hasValue()", "(@).value()", "(@).optMap(x, x)",
    "(@).optMap(x, [x])", "(@).optFlatMap(x, a.?b)", "size(@)", "string(@)", "(@).map(x, x)", "(@).map(x, {'k':x})",
    "(@).filter(x, true)", "(@).exists(x, x == 1)", "cel.bind(v, @, v)", "cel.bind(v, @, [v])", "cel.bind(v, @, {'k': v})",
    "(@).k", "(@)[0]", "(@).?k", "(@)[?0]", "(@)['k']", "(@).sort()", "(@).sortBy(x, x)", "(@).distinct()",
    "(@).flatten()", "(@).reverse()", "(@).first()", "(@).last()", "(@).slice(0,1)", "-(@)", "!(@)", "'%s'.format([@])",
    "has((@).k)", "math.greatest(@)", "sets.contains([@],[1])", "(@).join()", "{@: 1}", "base64.encode(@)", "int(@)",
    "bytes(@)",
)  # fmt: skip
AROUND_TWO = (
    "(@) + (@)", "(@) == (@)", "(@) < (@)", "(@) in (@)", "true ? (@) : (@)", "n > 5 ? (@) : (@)", "(@).or(@)",
    "(@).orValue(@)", "[@, @]", "{'x': @, 'y': @}", "(@) || (@)", "(@) && (@)", "(@)[@]", "(@).split(@)",
    "(@).contains(@)",
)  # fmt: skip


def expression(chance: random.Random, depth: int) -> str:
    if not depth or chance.random() < 0.15:
        return chance.choice(ATOMS)
    if chance.random() < 0.65:
        return chance.choice(AROUND_ONE).replace("@", expression(chance, depth - 1))
    parts = chance.choice(AROUND_TWO).split("@")
    return parts[0] + expression(chance, depth - 1) + parts[1] + expression(chance, depth - 1) + parts[2]


def main() -> None:
    parser = argparse.ArgumentParser(description="Random CEL expressions.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--last", type=Path, default=Path("fuzz-cel-last.txt"))
    arguments = parser.parse_args()
    faulthandler.enable()
    chance = random.Random(arguments.seed)
    functions = {function.name: lambda value: value for function in FUNCTIONS}
    values = 0
    with arguments.last.open("w") as last:
        for _ in range(arguments.count):
            text = expression(chance, chance.randint(1, 5))
            last.seek(0)
            last.truncate()
            last.write(text)
            last.flush()
            try:
                json_value(compile_expression(text, VARIABLES, FUNCTIONS).evaluate(DATA, functions))
                values += 1
            except CelError:
                continue
    arguments.last.unlink()
    print(f"{values} values, {arguments.count - values} errors")


if __name__ == "__main__":
    main()
