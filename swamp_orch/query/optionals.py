"""Where an optional may stand in an expression.

The engine's Python binding (cel-expr-python 0.1.3) ends the process when a value that it has to hand to
Python is a map with an optional in it. So an optional may stand only where it cannot get into a map or list,
or into the arguments of a function: this is decided before anything is evaluated.

Rules: an optional may be selected from (`a.?b.c`, `a.?b[0]`), asked (`hasValue`, `value`, `or`, `orValue`,
`optMap`, `optFlatMap`), compared, be an optional element or entry (`[?a.?b]`, `{?"k": a.?b}`), a branch of a
condition, a bound name, or the result. Everything else is refused. What is an optional is known from the
engine's types and, because it takes an optional of something `dyn` for `dyn`, from how it is made.
"""

from typing import Final

from swamp_orch.query import syntax
from swamp_orch.query.syntax import Call, Checked, Comprehension, ListLiteral, MapLiteral, Name, Node, Select

_ASKED: Final = frozenset({"hasValue", "value", "orValue", "or"})
_MADE: Final = frozenset({syntax.OPTIONAL_SELECT, syntax.OPTIONAL_INDEX})
_COMPARED: Final = frozenset({"_==_", "_!=_"})
_CONDITION: Final = "_?_:_"


def misplaced(checked: Checked) -> Node | None:
    """An optional that stands where it may not, or None."""
    found = _Found(checked.optional)
    found.look(checked.root, frozenset())
    return found.misplaced


class _Found:
    def __init__(self, typed: frozenset[int]) -> None:
        self._typed = typed
        self.misplaced: Node | None = None

    def look(self, node: Node, bound: frozenset[str]) -> bool:
        """Whether `node` may be an optional; `bound` are the names that hold one."""
        allowed: tuple[Node, ...] = ()
        result = node.id in self._typed
        match node:
            case Name(name=name):
                return result or name in bound
            case Select(operand=operand):
                allowed = (operand,)
                optional = self._parts(node, allowed, bound)
                return result or (operand.id in optional and not node.test_only)
            case Call(function=function, target=None, arguments=arguments) if function in _MADE:
                self._parts(node, arguments[:1], bound)
                return True
            case Call(function=syntax.INDEX, arguments=arguments):
                return arguments[0].id in self._parts(node, arguments[:1], bound) or result
            case Call(function=function, arguments=arguments) if function == _CONDITION:
                return bool(self._parts(node, arguments[1:], bound)) or result
            case Call(function=function, arguments=arguments) if function in _COMPARED:
                allowed = arguments
            case Call(function=function, target=target, arguments=arguments) if target is not None:
                if function in _ASKED:
                    allowed = (target, *arguments) if function == "or" else (target,)
                result = (
                    result or function == "or" or (isinstance(target, Name) and target.name == "optional")
                )
            case ListLiteral(optional=optional_parts) | MapLiteral(optional=optional_parts):
                allowed = optional_parts
            case Comprehension():
                return self._loop(node, bound) or result
        self._parts(node, allowed, bound)
        return result

    def _loop(self, node: Comprehension, bound: frozenset[str]) -> bool:
        """`cel.bind` and `optMap` bind an optional, or answer one; loops gather in list literals."""
        if self.look(node.range, bound):
            self.misplaced = self.misplaced or node.range
        inside = (
            bound.union(node.variables) if self.look(node.start, bound) else bound.difference(node.variables)
        )
        *steps, last = node.body
        for part in steps:
            if self.look(part, inside) and not isinstance(part, Name):
                self.misplaced = self.misplaced or part
        return self.look(last, inside)

    def _parts(self, node: Node, allowed: tuple[Node, ...], bound: frozenset[str]) -> set[int]:
        """Look at the parts of a node; answers the ids of those that may be optionals."""
        fine = {part.id for part in allowed}
        return {part.id for part in syntax.children(node) if self._optional(part, fine, bound)}

    def _optional(self, part: Node, fine: set[int], bound: frozenset[str]) -> bool:
        found = self.look(part, bound)
        if found and part.id not in fine:
            self.misplaced = self.misplaced or part
        return found
