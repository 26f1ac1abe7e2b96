"""The options of a part: its constructor's own arguments, read from the source file without importing it.

Importing torch takes longer than any answer to a misspelt option may. Where the source does not say it all (a class
whose constructor is made at run time, an attribute that is assigned), the part is imported after all and asked.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
import sys
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union

from plasticity_cl.errors import UserError, in_one_line, unknown_name
from plasticity_cl.parts.values import KINDS

FACTS = "facts"
"""Name of the decorator that states facts of a function; a class states its own as attributes."""

REQUIRED = inspect.Parameter.empty
"""The default of an argument that has none."""


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor.

    Attributes:
        name: Its name.
        type: Its type; ``Any`` where it has none that options can have.
        default: Its default; :data:`REQUIRED` where it has none.
        help: What its docstring says of it.
    """

    name: str
    type: Any
    default: Any
    help: str = ""


@dataclass(frozen=True)
class Signature:
    """What is known of a part without making it.

    Attributes:
        arguments: Of its constructor, in order.
        facts: What it states of itself: the keywords of its decorator ``facts``, or the class's plain attributes.
        takes: The names of the types of its first argument; empty where it has none.
        gives: The name of the type that it returns, its own where it is a class.
        help: The first line of its docstring.
    """

    arguments: tuple[Argument, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    takes: frozenset[str] = frozenset()
    gives: str = ""
    help: str = ""


@lru_cache
def signature(path: str) -> Signature:
    """Read the signature of a part.

    Args:
        path: ``module:attribute``.

    Raises:
        UserError: If there is no such module or attribute, or it cannot be imported where that is needed.
    """
    module, _, attribute = path.partition(":")
    found = _read(module, attribute)
    return found if found is not None else _ask(load(path))


def load(path: str) -> Any:
    """Import what ``module:attribute`` names.

    Raises:
        UserError: If there is no such thing, or its module cannot be imported.
    """
    module, _, attribute = path.partition(":")
    try:
        value: Any = importlib.import_module(module)
    except Exception as error:  # whatever a module of somebody else's raises when it is imported
        said = in_one_line(error) or type(error).__name__
        raise UserError(f"{module} cannot be imported: {type(error).__name__}: {said}") from error
    for name in attribute.split("."):
        if not hasattr(value, name):
            raise unknown_name(f"name in {module}", name, [known for known in dir(value) if not known.startswith("_")])
        value = getattr(value, name)
    return value


def locate(dotted: str) -> str:
    """Turn ``my_package.module.Name`` into ``my_package.module:Name``, without importing anything.

    Raises:
        UserError: If no part of it is a module that can be found.
    """
    pieces = dotted.split(".")
    for end in range(len(pieces) - 1, 0, -1):
        if _file(".".join(pieces[:end])) is not None:
            return f"{'.'.join(pieces[:end])}:{'.'.join(pieces[end:])}"
    raise UserError(
        f"there is no module {pieces[0]} for {dotted}: install its package, or stand in the folder that holds it"
    )


# From the source


@lru_cache
def _file(module: str) -> Path | None:
    """The source file of a module; ``None`` where there is none. Nothing is imported, not even the packages above."""
    top, *below = module.split(".")
    try:
        spec = sys.modules[top].__spec__ if top in sys.modules else importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not below:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for place in spec.submodule_search_locations or ():
        path = Path(place, *below)
        for file in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
            if file.is_file():
                return file
    return None


@lru_cache
def _tree(module: str) -> ast.Module | None:
    file = _file(module)
    if file is None:
        return None
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except SyntaxError as error:
        raise UserError(f"{file}, line {error.lineno}: {error.msg}") from None
    except (OSError, UnicodeDecodeError):
        return None


def _find(module: str, name: str, depth: int = 5) -> tuple[str, ast.stmt] | None:
    """The statement that defines a name in a module, or in the one that it is imported from; with that module."""
    tree = _tree(module)
    if tree is None or depth == 0:
        return None
    for node in _statements(tree.body):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            return module, node
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == name for t in node.targets):
            return module, node
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find(_absolute(module, node), alias.name, depth - 1)
    return None


def _statements(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    for node in body:
        if isinstance(node, ast.If):  # TYPE_CHECKING
            yield from _statements(node.body)
        else:
            yield node


def _absolute(module: str, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    file = _file(module)
    package = module.split(".")[: None if file is not None and file.name == "__init__.py" else -1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def _read(module: str, attribute: str) -> Signature | None:
    """Read a signature from the source; ``None`` where the source does not say it."""
    found = _find(module, attribute)
    if found is None:
        _check_defined(module, attribute)
        return None
    home, node = found
    if isinstance(node, ast.FunctionDef):
        return _of_function(home, node, node, skip=0)
    if isinstance(node, ast.ClassDef):
        return _of_class(home, node)
    return None


def _check_defined(module: str, name: str) -> None:
    """Refuse a name that a module cannot have: one that its source does not define, and that nothing makes later.

    Raises:
        UserError: With the close matches.
    """
    tree = _tree(module)
    if tree is None or "." in name:
        return
    defined: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    if not {name, "*", "__getattr__"} & defined:
        raise unknown_name(f"name in {module}", name, [known for known in defined if not known.startswith("_")])


def _of_class(module: str, node: ast.ClassDef) -> Signature | None:
    owner: ast.ClassDef = node
    home = module
    for _ in range(5):
        init = next((n for n in owner.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if init is not None:
            return _of_function(
                home, init, node, skip=1, facts={**_class_facts(home, owner), **_class_facts(module, node)}
            )
        if owner.decorator_list or len(owner.bases) != 1 or not isinstance(owner.bases[0], ast.Name):
            return None
        found = _find(home, owner.bases[0].id)
        if found is None or not isinstance(found[1], ast.ClassDef):
            return None
        home, owner = found[0], found[1]
    return None


def _of_function(
    module: str,
    function: ast.FunctionDef,
    documented: ast.FunctionDef | ast.ClassDef,
    skip: int,
    facts: Mapping[str, Any] | None = None,
) -> Signature:
    given = function.args
    positional = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [*[None] * (len(positional) - len(given.defaults)), *given.defaults]
    pairs = [*zip(positional[skip:], defaults[skip:], strict=True)]
    pairs += zip(given.kwonlyargs, given.kw_defaults, strict=True)
    texts = [ast.get_docstring(node) or "" for node in (documented, function)]
    helps = {**_described(texts[1]), **_described(texts[0])}
    arguments = tuple(
        Argument(
            argument.arg,
            _type(module, argument.annotation),
            REQUIRED if default is None else _value(module, default),
            helps.get(argument.arg, ""),
        )
        for argument, default in pairs
    )
    first = pairs[0][0].annotation if pairs else None
    gives = documented.name if isinstance(documented, ast.ClassDef) else _name(documented.returns)
    if facts is None:
        facts = {
            keyword.arg: _value(module, keyword.value)
            for decorator in function.decorator_list
            if isinstance(decorator, ast.Call) and _name(decorator.func) == FACTS
            for keyword in decorator.keywords
            if keyword.arg is not None
        }
    return Signature(arguments, facts, _names(first), gives, _first_line(texts[0]))


def _class_facts(module: str, node: ast.ClassDef) -> dict[str, Any]:
    facts = {}
    for statement in node.body:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = getattr(statement, "value", None)
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name) and value is not None:
            facts[target.id] = _value(module, value)
    return facts


def _name(node: ast.expr | None) -> str:
    """The last name of a type, as it stands there."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.rpartition(".")[2]
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _names(node: ast.expr | None) -> frozenset[str]:
    """The last names of all types that an annotation is a union of; none where one is ``Any``."""
    if node is None:
        return frozenset()
    if isinstance(node, ast.BinOp):
        return _names(node.left) | _names(node.right)
    name = _name(node)
    return frozenset() if name in ("", "Any", "object") else frozenset({name})


class Unknown:
    """A default or fact that the source does not say as a value."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


def _value(module: str, node: ast.expr, depth: int = 3) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        pass
    if isinstance(node, ast.Name) and depth:
        found = _find(module, node.id)
        if found is not None and isinstance(found[1], ast.Assign | ast.AnnAssign) and found[1].value is not None:
            return _value(found[0], found[1].value, depth - 1)
    return Unknown(ast.unparse(node))


def _type(module: str, node: ast.expr | None, depth: int = 8) -> Any:
    """The type that an annotation names, as far as options can have it; ``Any`` for all others."""
    if node is None or depth == 0:
        return Any
    if isinstance(node, ast.Constant):
        if node.value is None:
            return type(None)
        if isinstance(node.value, str):
            return _type(module, ast.parse(node.value, mode="eval").body, depth - 1)
        return Any
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return _union([_type(module, side, depth - 1) for side in (node.left, node.right)])
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        return _subscripted(module, _name(node.value), inner, depth - 1)
    name = _name(node)
    if name in KINDS:
        return KINDS[name]
    found = _find(module, name) if isinstance(node, ast.Name) else None
    if found is not None and isinstance(found[1], ast.Assign | ast.AnnAssign):
        return _type(found[0], found[1].value, depth - 1)
    return Any


def _subscripted(module: str, name: str, inner: Sequence[ast.expr], depth: int) -> Any:
    if name == "Literal":
        return Literal[tuple(ast.literal_eval(word) for word in inner)]
    if name == "Annotated":
        return _type(module, inner[0], depth)
    types = [... if isinstance(n, ast.Constant) and n.value is ... else _type(module, n, depth) for n in inner]
    if name == "Union":
        return _union(types)
    if name == "Optional":
        return _union([*types, type(None)])
    if name in ("tuple", "Tuple"):
        return _generic(tuple, types)
    if name in ("list", "List", "Sequence"):
        return _generic(tuple, [types[0], ...])
    return Any


def _generic(kind: Any, inner: Sequence[Any]) -> Any:
    """A generic type of types that are known at run time only."""
    return kind[tuple(inner)]


def _union(types: Sequence[Any]) -> Any:
    """The union of what options can be, whatever else a constructor takes; ``Any`` where nothing is left."""
    known = [of for of in types if of is not Any]
    if not known or known == [type(None)]:
        return Any if not known or len(known) < len(types) else type(None)
    return _generic(Union, known)


def _first_line(text: str) -> str:
    return text.strip().partition("\n\n")[0].replace("\n", " ").rstrip(".")


def _described(text: str) -> dict[str, str]:
    """What a docstring in Google's style says of each argument."""
    section = re.search(r"^Args:\n((?:[ \t]+.*\n|\n)*)", f"{inspect.cleandoc(text)}\n", flags=re.MULTILINE)
    if section is None:
        return {}
    said: dict[str, str] = {}
    name = ""
    for line in section[1].splitlines():
        begins = re.match(r"    \*{0,2}(\w+)(?: \([^)]*\))?: ?(.*)", line)
        if begins:
            name = begins[1]
            said[name] = begins[2]
        elif name and line.strip():
            said[name] += f" {line.strip()}"
    return said


# From the thing itself


def _ask(part: Any) -> Signature:
    if not callable(part):
        raise UserError(f"{part!r} is no part: name a class or a function")
    try:
        parameters = list(inspect.signature(part).parameters.values())
    except (TypeError, ValueError):
        return Signature(())
    function = part.__init__ if inspect.isclass(part) else part
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # names that exist for type checkers only
        hints = {}
    text = inspect.getdoc(part) or ""
    helps = _described(text)
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    arguments = tuple(
        Argument(p.name, _of_hint(hints.get(p.name, Any)), p.default, helps.get(p.name, ""))
        for p in parameters
        if p.kind not in variable
    )
    facts = {name: value for name, value in vars(part).items() if not name.startswith("_") and not callable(value)}
    takes = hints.get(arguments[0].name) if arguments else None
    gives = part if inspect.isclass(part) else hints.get("return")
    names = [getattr(option, "__name__", "") for option in typing.get_args(takes) or [takes]] if takes else []
    return Signature(
        arguments, facts, frozenset(filter(None, names)), getattr(gives, "__name__", ""), _first_line(text)
    )


def _of_hint(hint: Any) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (int, float, str, bool, type(None)) or origin in (Literal, Annotated):
        return hint
    if hint is Path:
        return str
    if origin is Union or (origin is not None and getattr(origin, "__name__", "") == "UnionType"):
        return _union([_of_hint(option) for option in inner])
    if origin is tuple:
        return _generic(tuple, [... if item is ... else _of_hint(item) for item in inner])
    if origin in (list, Sequence) and inner:
        return _generic(tuple, [_of_hint(inner[0]), ...])
    return Any
