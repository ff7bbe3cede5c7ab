"""`and`, `or` and `not` of blocks, for which Triton's interpreter uses Python's.

To Python, every block of several elements is true: `x and y` is y, and `not x` is False. Compiled code takes `and`, `or` and
`not` of int1 element by element, and evaluates all operands. It refuses `if` and `while` of a block.
"""

import ast
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from attn_fuzz.interpreted.together import control, rewriting

_LOGICAL, _NOT = "_logical_of_operands", "_not_of_operand"


def install(interpreter: Any) -> None:
    """Rewrite these operators and the control flow of every interpreted function, of Triton's `triton.runtime.interpreter`."""
    transformer = interpreter.ASTTransformer
    transformer.visit_BoolOp = _visit_bool_op
    transformer.visit_UnaryOp = _visit_unary_op
    if not hasattr(transformer, "visit_Compare"):  # Triton 3.6: assigned values are not visited
        transformer.visit_Assign = _visiting_value(transformer.visit_Assign)
    transformer.visit_Module = _visit_module
    semantic = type(interpreter.interpreter_semantic)
    semantic.make_tensor_descriptor = describing(semantic.make_tensor_descriptor, interpreter.TensorHandle)
    # an interpreted function is given the globals of this module
    setattr(interpreter, rewriting.CONTROL, control)
    setattr(interpreter, _LOGICAL, _logical(interpreter.tl.tensor))
    setattr(interpreter, _NOT, _not(interpreter.tl.tensor))


def truth(self: Any) -> bool:
    """`tl.tensor.__bool__`: the truth of a scalar. Triton's own code asks if it got a block at all."""
    if sys._getframe(1).f_globals.get("__name__") == "triton.language.semantic":
        return True
    return control.truth(self)


def transposed(interpreter: Any) -> property:
    """`tl.tensor.T`"""
    tl = interpreter.tl

    def swap(self: Any) -> Any:
        *others, rows, columns = self.type.shape
        block = interpreter.TensorHandle(np.swapaxes(self.handle.data, -1, -2), self.handle.dtype, self.handle.attr)
        return tl.tensor(block, tl.block_type(self.dtype, [*others, columns, rows]))

    return property(swap)


def describing(make: Any, tensor_handle: type) -> Any:
    """`TritonSemantic.make_tensor_descriptor` for a last stride that is an argument, whose truth it takes (see `truth`)."""

    def make_tensor_descriptor(self: Any, base: Any, shape: Any, strides: Any, *rest: Any, **named: Any) -> Any:
        *others, last = strides
        handle: Any = getattr(last, "handle", None)
        number = handle.data.item() if isinstance(handle, tensor_handle) else last
        return make(self, base, shape, [*others, number], *rest, **named)

    return make_tensor_descriptor


def _visit_module(self: Any, node: ast.Module) -> ast.AST:
    self.generic_visit(node)
    return rewriting.rewrite(node)


def _visit_bool_op(self: Any, node: ast.BoolOp) -> ast.AST:
    self.generic_visit(node)
    first, *others = node.values
    if any(isinstance(part, ast.NamedExpr) for other in others for part in ast.walk(other)):
        return node  # a lambda would keep the name to itself; `truth` refuses a block
    nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    name = "logical_and" if isinstance(node.op, ast.And) else "logical_or"
    later = [ast.Lambda(args=nothing, body=other) for other in others]
    call = ast.Call(func=ast.Name(id=_LOGICAL, ctx=ast.Load()), args=[ast.Constant(name), first, *later], keywords=[])
    return ast.copy_location(call, node)


def _visit_unary_op(self: Any, node: ast.UnaryOp) -> ast.AST:
    self.generic_visit(node)
    if not isinstance(node.op, ast.Not):
        return node
    call = ast.Call(func=ast.Name(id=_NOT, ctx=ast.Load()), args=[node.operand], keywords=[])
    return ast.copy_location(call, node)


def _visiting_value(visit_assign: Callable[[Any, ast.Assign], ast.AST]) -> Callable[[Any, ast.Assign], ast.AST]:
    def visit(self: Any, node: ast.Assign) -> ast.AST:
        node.value = self.visit(node.value)
        return visit_assign(self, node)

    return visit


def _logical(tensor: type) -> Callable[..., Any]:
    def logical(name: str, first: Any, *later: Callable[[], Any]) -> Any:
        """Python's operator until an operand is a tensor of int1, and from there on Triton's."""
        result = first
        for operand in later:
            if _is_logical(result, tensor):
                other = operand()
                result = getattr(result, name)(other) if isinstance(other, tensor) else _with_constant(name, result, other)
            elif bool(result) is (name == "logical_or"):
                return result
            else:
                result = operand()
        return result

    return logical


def _with_constant(name: str, result: Any, constant: Any) -> Any:
    """A tensor and a constant: the constant if it decides the result, else the tensor."""
    return constant if bool(constant) is (name == "logical_or") else result


def _not(tensor: type) -> Callable[[Any], Any]:
    return lambda operand: operand.__not__() if _is_logical(operand, tensor) else not operand


def _is_logical(value: Any, tensor: type) -> bool:
    """True if Triton's operators take a value: a block, or a scalar of int1."""
    return isinstance(value, tensor) and (value.type.is_block() or value.dtype.name == "int1")
