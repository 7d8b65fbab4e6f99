"""Rules that each module keeps by itself: its names, its size, no hidden input, no hidden state.

Each check goes from a module to a list of its faults.

`tests/test_architecture.py` runs them over the repository, and shows that each can fail.
"""

import ast
import re
from typing import Final

from tests.architecture import Module

FORBIDDEN_WORD: Final = re.compile(
    r"(manager|handler|helper|util|common|core|misc|processor|data|info|context)s?"
)
FORBIDDEN_CLASS_WORD: Final = re.compile(rf"{FORBIDDEN_WORD.pattern}|base|abstract|impl")
# Methods whose names, and whose arguments' names, are a foreign protocol's.
FOREIGN_METHODS: Final = {"data_received"}

MAX_MODULE_LINES: Final = 400
MAX_FUNCTION_LINES: Final = 60

_MUTABLE: Final = {"dict", "list", "set", "deque", "defaultdict", "OrderedDict", "WeakValueDictionary"}


def name_faults(module: Module) -> list[str]:
    """Return the names of our own that contain a forbidden word, the module's own name included."""
    faults = [f"{module.name}: {word}" for word in _words(module.name) if FORBIDDEN_WORD.fullmatch(word)]
    for line, name, is_class in sorted(_defined_names(module.tree)):
        forbidden = FORBIDDEN_CLASS_WORD if is_class else FORBIDDEN_WORD
        if any(forbidden.fullmatch(word) for word in _words(name)):
            faults.append(f"{module.name} line {line}: {name}")
    return faults


def _words(name: str) -> list[str]:
    """Split `snake_case`, `CamelCase` and dotted names into lower-case words."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _defined_names(tree: ast.AST) -> set[tuple[int, str, bool]]:
    names: set[tuple[int, str, bool]] = set()
    foreign: set[int] = set()
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if name in FOREIGN_METHODS:
                foreign |= {id(argument) for argument in ast.walk(node.args)}
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                names.add((node.lineno, name, False))
            case ast.ClassDef(name=name):
                names.add((node.lineno, name, True))
            case ast.arg(arg=name) if id(node) not in foreign:
                names.add((node.lineno, name, False))
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                names.add((node.lineno, name, False))
            case ast.alias(asname=str(name)):
                names.add((0, name, False))
    return names


def size_faults(module: Module) -> list[str]:
    """Return modules and functions that are too long, each with its number of lines."""
    lines = len(module.source.splitlines())
    faults = [f"{module.name}: {lines} lines"] if lines > MAX_MODULE_LINES else []
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                faults.append(f"{module.name}.{node.name}: {lines} lines")
    return faults


def environment_faults(module: Module) -> list[str]:
    """Return the places that read the environment."""
    places = []
    for node in ast.walk(module.tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv" | "getenvb"):
                places.append(node.lineno)
            case ast.ImportFrom(module="os", names=names) if any("env" in alias.name for alias in names):
                places.append(node.lineno)
    return [f"{module.name} line {line} reads the environment" for line in places]


def state_faults(module: Module) -> list[str]:
    """Return module-level state: what is neither constant nor logger, what is mutable, and `global`."""
    faults = [
        f"{module.name} line {node.lineno}: global {', '.join(node.names)}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Global)
    ]
    for node in module.tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                pass
            case _:
                continue
        is_logger = ast.unparse(value).startswith("logging.getLogger(")
        is_constant = re.fullmatch(r"_{0,2}[A-Z]\w*|__\w+__", name) is not None
        if not (is_logger or is_constant) or _is_empty_container(value):
            faults.append(f"{module.name} line {node.lineno}: {name} = {ast.unparse(value)}")
    return faults


def _is_empty_container(value: ast.expr) -> bool:
    match value:
        case ast.Dict(keys=[]) | ast.List(elts=[]):
            return True
        case ast.Call(func=ast.Name(id=name), args=[]):
            return name in _MUTABLE
        case ast.Call(func=ast.Attribute(attr=name), args=[]):
            return name in _MUTABLE
    return False
