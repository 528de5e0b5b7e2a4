"""Expressions of TVMScript, evaluated as TVM does it, without a program for each of their nodes.

TVM makes every name, constant and call of an expression an expression of Python's own, which it
compiles and runs, and notes for each node where in the source it stands. Here they are evaluated as
they are met; what is rare, or reads its parser from the stack, is left to TVM.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tvm.script.parser.core import doc, evaluator
from tvm.tirx.script.parser import entry

_evaluated = evaluator.eval_expr
# Macros and decorators look for their parser, or for a caller's variables, in the stack.
_READS_STACK = entry.__name__


def evaluate(parser: Any, node: Any, names: Mapping[str, Any] | None) -> Any:
    """What an expression of `parser` gives with these names; in place of TVM's `eval_expr`.

    Errors are TVM's own, and name the same place.
    """
    return _value(parser, node, names or {})


def _value(parser: Any, node: Any, names: Mapping[str, Any]) -> Any:
    kind = type(node)
    if kind is doc.Name:
        return _named(parser, node, names)
    if kind is doc.Constant:
        return node.value
    compute = _NODES.get(kind)
    return _left_to_tvm(parser, node, names) if compute is None else compute(parser, node, names)


def _left_to_tvm(parser: Any, node: Any, names: Mapping[str, Any]) -> Any:
    return _evaluated(parser, node, dict(names))


def _named(parser: Any, node: Any, names: Mapping[str, Any]) -> Any:
    # Builtins, and names that there are none of.
    return names[node.id] if node.id in names else _left_to_tvm(parser, node, names)


def _attribute(parser: Any, node: Any, names: Mapping[str, Any]) -> Any:
    of = _value(parser, node.value, names)
    try:
        return getattr(of, node.attr)
    except Exception as error:
        parser.report_error(node, error)


def _item(parser: Any, node: Any, names: Mapping[str, Any]) -> Any:
    if _slices(node):
        return _left_to_tvm(parser, node, names)
    of, index = _value(parser, node.value, names), _value(parser, node.slice, names)
    try:
        return of[index]
    except Exception as error:
        parser.report_error(node, error)


def _slices(node: Any) -> bool:
    """Whether it is a part of a buffer: how TVM reads it depends on what it stands in."""
    if type(node) is not doc.Subscript:
        return False
    inside = node.slice.elts if type(node.slice) is doc.Tuple else [node.slice]
    return any(type(one) is doc.Slice for one in inside)


def _items(parser: Any, node: Any, names: Mapping[str, Any]) -> Any:
    values = _listed(parser, node.elts, names)
    return tuple(values) if type(node) is doc.Tuple else values


def _listed(parser: Any, nodes: Iterable[Any], names: Mapping[str, Any]) -> list[Any]:
    values: list[Any] = []
    for node in nodes:
        if type(node) is doc.Starred:
            values.extend(_value(parser, node.value, names))
        else:
            values.append(_value(parser, node, names))
    return values


def _call(parser: Any, node: Any, names: Mapping[str, Any]) -> Any:
    function = _value(parser, node.func, names)
    reads_stack = getattr(function, "__module__", None) == _READS_STACK
    if reads_stack or any(map(_slices, node.args)) or any(k.arg is None for k in node.keywords):
        return _left_to_tvm(parser, node, names)
    args = _listed(parser, node.args, names)
    keywords = {k.arg: _value(parser, k.value, names) for k in node.keywords}
    try:
        return function(*args, **keywords)
    except Exception as error:
        parser.report_error(node, error)


def _unary(parser: Any, node: Any, names: Mapping[str, Any]) -> Any:
    return _operation(parser, node, names, [node.operand])


def _binary(parser: Any, node: Any, names: Mapping[str, Any]) -> Any:
    return _operation(parser, node, names, [node.left, node.right])


def _comparison(parser: Any, node: Any, names: Mapping[str, Any]) -> Any:
    if len(node.ops) > 1:
        return _left_to_tvm(parser, node, names)
    return _operation(parser, node, names, [node.left, *node.comparators], node.ops[0])


def _operation(
    parser: Any, node: Any, names: Mapping[str, Any], operands: Iterable[Any], op: Any = None
) -> Any:
    if any(map(_slices, operands)):
        return _left_to_tvm(parser, node, names)
    values = [_value(parser, operand, names) for operand in operands]
    try:
        return evaluator._eval_op(op or node.op, values)
    except Exception as error:
        parser.report_error(node, error)


_NODES = {
    doc.Attribute: _attribute,
    doc.BinOp: _binary,
    doc.Call: _call,
    doc.Compare: _comparison,
    doc.List: _items,
    doc.Subscript: _item,
    doc.Tuple: _items,
    doc.UnaryOp: _unary,
}
