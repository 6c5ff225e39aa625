"""Turns the expression of a message in the code into its text, with ‹placeholders› where a run fills something in."""

import ast
import functools
import re
from collections import defaultdict
from dataclasses import dataclass, field

DEPTH = 6
"""How many names and functions are followed from one message to the texts that it is made of."""
WRAPPERS = (
    "escape", "shown", "str", "repr", "link", "counted", "named", "int", "float", "abs", "round", "sorted", "list",
    "next", "iter", "tuple", "set", "max", "min", "sum",
)  # fmt: skip
METHODS = (
    "split",
    "strip",
    "rstrip",
    "removesuffix",
    "removeprefix",
    "lower",
    "detach",
    "item",
    "format",
    "get",
    "tolist",
)
"""Functions and methods that a placeholder leaves out: it is named by what they are given."""


@dataclass(frozen=True)
class Scope:
    """Where the names in an expression get their values from."""

    module: ast.Module
    function: ast.AST
    """The innermost function around the expression, or the module."""
    line: int
    """The line of the expression: a later assignment says nothing about it."""
    following: frozenset[str] = field(default_factory=frozenset)
    """Names that are being followed already."""


def template(node: ast.expr | None, scope: Scope) -> str:
    """Returns the text of an expression, e.g. "no images in ‹folder›"; what is known only at run time is a
    placeholder."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(template(value, scope) for value in values)
        case ast.FormattedValue(value=value):
            return template(value, scope)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return template(left, scope) + template(right, scope)
        case ast.IfExp(body=body, orelse=other):
            return _either(template(body, scope), template(other, scope))
        case ast.Name(id=name) if len(scope.following) < DEPTH and name not in scope.following:
            return _assigned(name, scope) or f"‹{_words(name)}›"
        case ast.BinOp(left=ast.Constant(value=str(text)), op=ast.Mult()):
            return f"‹{text}›"
        case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in WRAPPERS:
            return template(first, scope)
        case ast.Call(func=ast.Name(id=name)) if len(scope.following) < DEPTH and name not in scope.following:
            return _returned(name, scope) or f"‹{_placeholder(node)}›"
    return f"‹{_placeholder(node)}›"


def literal(text: str) -> str:
    """Returns a template without its placeholders."""
    return re.sub(r"‹[^‹›]*›", "", text)


def _either(first: str, second: str) -> str:
    """One of two texts: a short choice is a placeholder of its own."""
    if not first or not second:
        return _bracketed(first or second) if literal(first + second).strip() else first + second
    if max(len(first), len(second)) < 25:
        return _bracketed(f"{first} or {second}")
    return first if len(literal(first)) >= len(literal(second)) else second


def _bracketed(text: str) -> str:
    return f"‹{text.translate({ord(mark): None for mark in '‹›'})}›"


def _assigned(name: str, scope: Scope) -> str:
    """The text that a variable was given before the line in question, with what was appended to it; "" if none."""
    inner = Scope(scope.module, scope.function, scope.line, scope.following | {name})
    text = ""
    for node in assignments(scope.function).get(name, []):
        if node.lineno >= scope.line or node.value is None:
            continue
        found = template(node.value, inner)
        if isinstance(node, ast.AugAssign):
            text += found
        else:
            text = found.replace(f"‹{_words(name)}›", text) if text else found
    if not text and scope.function is not scope.module:
        for node in assignments(scope.module).get(name, []):
            text = (
                node.value.value if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str) else ""
            )
    return text if re.search(r"[a-z]{2}", literal(text)) else ""


@functools.cache
def assignments(function: ast.AST) -> dict[str, list[ast.Assign | ast.AugAssign]]:
    """Returns the assignments to each variable in a function, or in the first level of a module, in their order."""
    found = defaultdict(list)
    nodes = function.body if isinstance(function, ast.Module) else ast.walk(function)
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AugAssign(target=ast.Name(id=name)):
                found[name].append(node)
    return {name: sorted(nodes, key=lambda node: node.lineno) for name, nodes in found.items()}


@functools.cache
def functions(module: ast.Module) -> dict[str, ast.FunctionDef]:
    """Returns the functions and methods of a module by their names."""
    bodies = [module.body, *(node.body for node in module.body if isinstance(node, ast.ClassDef))]
    return {node.name: node for body in bodies for node in body if isinstance(node, ast.FunctionDef)}


def _returned(name: str, scope: Scope) -> str:
    """The text that a function of the same module returns; "" where it returns none that is known."""
    function = functions(scope.module).get(name)
    if function is None:
        return ""
    returns = [node for node in ast.walk(function) if isinstance(node, ast.Return) and node.value]
    scopes = [Scope(scope.module, function, node.lineno + 1, scope.following | {name}) for node in returns]
    texts = [template(node.value, inner) for node, inner in zip(returns, scopes, strict=True)]
    return max(texts, key=lambda text: len(literal(text)), default="") if any(map(literal, texts)) else ""


def _placeholder(node: ast.expr | None) -> str:
    """A name for what an expression gives."""
    match node:
        case ast.Attribute(attr="__name__"):
            return "type"
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return _words(name)
        case ast.Call(func=ast.Attribute(value=ast.Constant(), attr="join"), args=[first]):
            return _placeholder(first)
        case ast.Call(func=ast.Name(id="len")):
            return "number"
        case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in WRAPPERS:
            return _placeholder(first)
        case ast.Call(func=ast.Name(id="map"), args=[_, given, *_]):
            return _placeholder(given)
        case ast.Call(func=ast.Attribute(attr="unparse")):
            return "text"
        case ast.Call(func=ast.Attribute(value=value, attr=name)) if name in METHODS:
            return _placeholder(value)
        case ast.Call(func=function):
            return _placeholder(function)
        case ast.GeneratorExp(elt=value) | ast.ListComp(elt=value) | ast.Subscript(value=value):
            return _placeholder(value)
        case ast.FormattedValue(value=value) | ast.Starred(value=value):
            return _placeholder(value)
        case ast.BinOp(left=ast.Constant(), right=value) | ast.IfExp(body=value) | ast.BinOp(left=value):
            return _placeholder(value)
    return "…"


def _words(name: str) -> str:
    return name.strip("_").replace("_", " ").lower()
