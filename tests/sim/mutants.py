"""Planted bugs: a generic operator over the text of the cores, and modules with one place changed.

The operator knows nothing of what the code means. It makes a list of small changes of a function: an `if` that
never or always holds, a swapped comparison, `and` for `or`, an effect that is not said, an assignment that is
not made. `CAUGHT` are those that the fixed seeds must find, by name; what the fixed seeds did not find when the
operator was let loose is in survivors.md.
"""

import ast
import copy
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import attrs

from swamp_orch.core import lease_ends, lease_ledger, leases, pool, reconcile, scheduler, tokens
from swamp_worker.core import dialing, holdings, slots

from .world import Cores

CHAINS: dict[str, tuple[ModuleType, ...]] = {
    "leases": (lease_ledger, lease_ends, reconcile, leases),  # each is made of those before it
    "scheduler": (pool, scheduler),
    "tokens": (tokens,),
    "dialing": (dialing,),
    "slots": (slots,),
    "holdings": (holdings,),
}

CLASSES = frozenset(
    {"Ledger", "Ends", "Reconciling", "Leases", "Pool", "Scheduler", "Dialing", "Slots", "Holdings"}
)

SWAPS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


@attrs.frozen
class Mutant:
    """One change: `where` is module.function, `what` the operator, `number` which of its places there."""

    where: str
    what: str
    number: int

    def __str__(self) -> str:
        return f"{self.where} {self.what} {self.number}"


def _places(function: ast.FunctionDef) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(function):
        if isinstance(node, ast.If | ast.IfExp):
            yield "never", node
            yield "always", node
        elif isinstance(node, ast.Compare) and len(node.ops) == 1:
            yield "swap", node
        elif isinstance(node, ast.BoolOp):
            yield "and-or", node
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield | ast.YieldFrom | ast.Call):
            yield "unsaid", node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            yield "unset", node
        elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
            yield "flip", node


def _change(what: str, node: ast.AST) -> None:
    match what, node:
        case (("never" | "always"), ast.If() | ast.IfExp()):
            node.test = ast.copy_location(ast.Constant(what == "always"), node)
        case "swap", ast.Compare():
            node.ops = [SWAPS[type(node.ops[0])]()]
        case "and-or", ast.BoolOp():
            node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        case "unsaid", ast.Expr():
            generator = isinstance(node.value, ast.Yield | ast.YieldFrom)
            nothing: ast.expr = ast.Constant(None)
            if generator:  # it stays a generator
                nothing = ast.YieldFrom(ast.Tuple([], ast.Load()))
            node.value = ast.copy_location(nothing, node)
        case "unset", ast.Assign():
            node.targets = [ast.copy_location(ast.Name("_", ast.Store()), node)]
        case "flip", ast.Constant():
            node.value = not node.value


def _functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name not in ("check", "__init__") and node.body:
            yield node


def _source(module: ModuleType) -> ast.Module:
    return ast.parse(Path(str(module.__file__)).read_text())


def _short(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[2]


def mutants(chain: str) -> Iterator[Mutant]:
    """Every change the operator knows, in the modules of a core."""
    for module in CHAINS[chain]:
        for function in _functions(_source(module)):
            counts: dict[str, int] = {}
            for what, _ in _places(function):
                number = counts[what] = counts.get(what, 0) + 1
                yield Mutant(f"{_short(module)}.{function.name}", what, number)


def plant(chain: str, mutant: Mutant) -> Cores:
    """The cores with this one change."""
    made: dict[str, ModuleType] = {}
    for module in CHAINS[chain]:
        tree = _source(module)
        for function in _functions(tree):
            if f"{_short(module)}.{function.name}" != mutant.where:
                continue
            places = [node for what, node in _places(function) if what == mutant.what]
            _change(mutant.what, places[mutant.number - 1])
        made[module.__name__] = _executed(module, ast.fix_missing_locations(tree), made)
    cores = copy.copy(Cores())
    setattr(cores, chain, made[CHAINS[chain][-1].__name__])
    return cores


def _executed(module: ModuleType, tree: ast.Module, made: dict[str, ModuleType]) -> ModuleType:
    spec = importlib.util.spec_from_loader(module.__name__, loader=None, origin=str(module.__file__))
    assert spec is not None
    planted = importlib.util.module_from_spec(spec)
    real = {name: sys.modules[name] for name in (*made, module.__name__)}
    sys.modules.update(made)
    sys.modules[module.__name__] = planted
    try:
        exec(compile(tree, f"{_short(module)} (planted)", "exec"), planted.__dict__)
    finally:
        sys.modules.update(real)
    for name, value in vars(module).items():
        # Events, states and tables stay the real ones: the shells speak with those.
        if not (name.startswith("__") or isinstance(value, FunctionType) or name in CLASSES):
            setattr(planted, name, value)
    return planted
