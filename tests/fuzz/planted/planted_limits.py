"""Errors of kernels and of code around them, and limits of this tool: one function each, called on x and y, [16] float32."""

import dataclasses
import functools
import importlib

import attn_reference
import torch
import triton
import triton.language as tl
from attn_contract import Layer
from attn_fuzz import foreign
from attn_fuzz.errors import LimitError
from attn_fuzz.interpreted import reductions
from attn_fuzz.targets.reference import REFERENCE_FP32
from attn_fuzz.targets.support import EVERYTHING
from attn_optimized.quantization import stored_format
from triton.language.extra import libdevice


def _jit(function):
    kernel = triton.jit(function)
    return functools.wraps(function)(lambda x, y: kernel[(1,)](x, y))


@_jit
def names_nothing(x, y):
    tl.store(y + tl.arange(0, 16), nothing)  # noqa: F821


@_jit
def calls_what_triton_has_not(x, y):
    tl.unheard_of(x)


@_jit
def blocks_of_two_sizes(x, y):
    tl.store(y + tl.arange(0, 16), tl.load(x + tl.arange(0, 8)) + tl.load(x + tl.arange(0, 16)))


@_jit
def product_of_two_sizes(x, y):
    a = tl.load(x + tl.arange(0, 16)[:, None] + tl.arange(0, 16)[None, :])
    tl.dot(a, tl.load(x + tl.arange(0, 32)[:, None] + tl.arange(0, 16)[None, :]))


@_jit
def range_of_three(x, y):
    tl.load(x + tl.arange(0, 3))


@_jit
def mask_larger_than_pointers(x, y):
    tl.load(x + tl.arange(0, 8), mask=tl.arange(0, 16) < 4)


@_jit
def axis_that_is_not_there(x, y):
    tl.sum(tl.load(x + tl.arange(0, 16)), axis=1)


@_jit
def truth_of_a_block(x, y):
    if tl.load(x + tl.arange(0, 16)) > 0:
        tl.store(y, 1.0)


@_jit
def arithmetic_of_float8(x, y):
    a = tl.load(x + tl.arange(0, 16)).to(tl.float8e4nv)
    tl.store(y + tl.arange(0, 16), (a * a).to(tl.float32))


@_jit
def float8_to_integers(x, y):
    tl.load(x + tl.arange(0, 16)).to(tl.float8e4nv).to(tl.int32)


@_jit
def join_of_two_dtypes(x, y):
    a = tl.load(x + tl.arange(0, 16))
    tl.join(a, a.to(tl.float16))


@_jit
def reshape_to_another_size(x, y):
    tl.reshape(tl.load(x + tl.arange(0, 16)), (4, 8))


@_jit
def static_assertion(x, y):
    tl.static_assert(x.dtype.element_ty == tl.float16)


@_jit
def exchange_of_two_shapes(x, y):
    tl.atomic_cas(y + tl.arange(0, 16), tl.load(x), tl.load(x))


@triton.jit
def _to_half(a, b):
    return (a + b).to(tl.float16)


@_jit
def reduction_to_another_dtype(x, y):
    tl.reduce(tl.load(x + tl.arange(0, 16)), 0, _to_half)


@triton.jit
def _of_three(x, y, size):
    tl.store(y + size, tl.load(x))


@triton.jit
def _added(a, b):
    return a + b


@_jit
def sum_of_a_function(x, y):
    tl.store(y, tl.reduce(tl.load(x + tl.arange(0, 16)), 0, _added))


def argument_missing(x, y):
    _of_three[(1,)](x, y)


def argument_of_another_name(x, y):
    _of_three[(1,)](x, y, length=3)


def list_without_an_entry(x, y):
    [][1]


def grid_of_four_axes(x, y):
    _of_three[(1, 1, 1, 1)](x, y, 3)


@_jit
def reduction_by_a_function_of_one(x, y):
    tl.reduce(tl.load(x + tl.arange(0, 16)), 0, lambda a: a)


@_jit
def option_that_a_load_has_not(x, y):
    tl.load(x, nothing=0)


@_jit
def loop_up_to_a_text(x, y):
    for _ in range("many"):
        tl.store(y, 1.0)


def shapes_of_torch(x, y):
    x @ torch.ones(3, 4)


def assertion(x, y):
    assert len(x) == 3


def reference_called_wrongly(x, y):
    attn_reference.merge(x)


def contract_refuses(x, y):
    Layer(num_heads=3, num_kv_heads=2, head_size=16, scale=1.0)


def optimized_called_wrongly(x, y):
    stored_format(None, "gfx942")


def module_that_its_package_has_not(x, y):
    importlib.import_module("attn_optimized.nowhere")


def name_that_its_module_has_not(x, y):
    from torch import nowhere  # noqa: F401


def _load(source: str, *, beside: str = "") -> None:
    """A package `planted_package` whose one named file has this source."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.py").write_text(source)
        Path(folder, "beside.py").write_text(beside)
        foreign.load("planted_package", ("kernel.py",), folder=Path(folder))


def foreign_module_that_its_package_has_not(x, y):
    _load("from planted_package import nowhere")


def foreign_file_that_raises(x, y):
    _load("1 / 0")


ERRORS = (
    *(names_nothing, calls_what_triton_has_not, blocks_of_two_sizes, product_of_two_sizes, range_of_three),
    *(mask_larger_than_pointers, axis_that_is_not_there, truth_of_a_block, arithmetic_of_float8, float8_to_integers),
    *(join_of_two_dtypes, reshape_to_another_size, static_assertion, exchange_of_two_shapes, reduction_to_another_dtype),
    *(grid_of_four_axes, reduction_by_a_function_of_one, argument_missing, argument_of_another_name, list_without_an_entry),
    *(shapes_of_torch, assertion, option_that_a_load_has_not, loop_up_to_a_text),
    *(reference_called_wrongly, contract_refuses, optimized_called_wrongly, module_that_its_package_has_not),
    *(name_that_its_module_has_not, foreign_module_that_its_package_has_not, foreign_file_that_raises),
)


@_jit
def rounds_down(x, y):
    tl.store(y + tl.arange(0, 16), libdevice.rcp_rd(tl.load(x + tl.arange(0, 16))))


@_jit
def root_rounded_up(x, y):
    tl.store(y + tl.arange(0, 16), libdevice.sqrt_ru(tl.load(x + tl.arange(0, 16))))


@_jit
def quotient_toward_zero(x, y):
    tl.store(y + tl.arange(0, 16), libdevice.div_rz(tl.load(x + tl.arange(0, 16)), 3.0))


@_jit
def unsigned_of_a_float(x, y):
    libdevice.float2uint_rn(tl.load(x + tl.arange(0, 16)))


@_jit
def assembly_of_a_gpu(x, y):
    tl.inline_asm_elementwise("v_nop", "=v,v", [tl.load(x)], tl.float32, True, 1)


@triton.jit
def _absolute(a):
    return a if a > 0 else -a


@_jit
def branches_by_element(x, y):
    tl.store(y + tl.arange(0, 16), tl.map_elementwise(_absolute, tl.load(x + tl.arange(0, 16))))


def package_that_is_not_installed(x, y):
    importlib.import_module("planted_package")


def module_of_a_package_that_is_not_installed(x, y):
    importlib.import_module("planted_package.kernels.attention")


def foreign_package_that_is_not_here(x, y):
    foreign.load("planted_package", ("kernel.py",))


def foreign_folder_without_the_package(x, y):
    import os
    from unittest import mock

    with mock.patch.dict(os.environ, {"ATTN_PARITY_PLANTED_PACKAGE": "/nowhere"}):
        foreign.load("planted_package", ("kernel.py",))


def foreign_file_of_another_release(x, y):
    foreign.load("attn_contract", ("nowhere.py",))


def foreign_file_that_is_not_named(x, y):
    _load("from planted_package import beside")


def foreign_module_without_a_stub(x, y):
    _load("import planted_stubbed.nowhere", beside="")


def import_inside_of_a_foreign_function(x, y):
    _load("def launch():\n    import planted_package.beside\nlaunch()")


def asks_for_a_gpu(x, y):
    raise AssertionError("Torch not compiled with CUDA enabled")


def says_so_itself(x, y):
    raise LimitError("a cache of 4 bits", "a contract that has them")


def says_so_as_the_cause(x, y):
    try:
        says_so_itself(x, y)
    except LimitError as error:
        raise RuntimeError("the kernel cannot run") from error


LIMITS = {
    rounds_down: "rcp_rd of libdevice",
    root_rounded_up: "sqrt_ru of libdevice",
    quotient_toward_zero: "div_rz of libdevice",
    unsigned_of_a_float: "float2uint_rn of libdevice",
    branches_by_element: "tl.map_elementwise: Triton's interpreter has no ",
    assembly_of_a_gpu: "tl.inline_asm_elementwise",
    package_that_is_not_installed: "module planted_package (lifted by installing planted_package)",
    module_of_a_package_that_is_not_installed: "module planted_package (lifted by installing planted_package)",
    foreign_package_that_is_not_here: "planted_package is neither installed nor in a folder",
    foreign_folder_without_the_package: "ATTN_PARITY_PLANTED_PACKAGE: got '/nowhere'",
    foreign_file_of_another_release: "attn_contract: ",
    foreign_file_that_is_not_named: "planted_package.beside is neither among the files",
    foreign_module_without_a_stub: "module planted_stubbed (lifted by installing planted_stubbed)",
    import_inside_of_a_foreign_function: "planted_package.beside is neither among the files",
    asks_for_a_gpu: "the call asks for a GPU: Torch not compiled with CUDA enabled",
    says_so_itself: "a cache of 4 bits (lifted by a contract that has them)",
    says_so_as_the_cause: "a cache of 4 bits",
}
"""By what meets it, the beginning of what a verdict names."""


def _with_a_fault(q, k, v, kv_cache, layer, batch, *, out, lse):
    reductions._combined = None
    sum_of_a_function(torch.ones(16), torch.ones(16))


def _of_4_bits(device):
    says_so_itself(None, None)


FAULTY = dataclasses.replace(REFERENCE_FP32, name="faulty", attention=_with_a_fault)
OF_4_BITS = dataclasses.replace(REFERENCE_FP32, name="of-4-bits", support=_of_4_bits)
FLOAT32 = dataclasses.replace(
    REFERENCE_FP32, name="float32", support=lambda device: dataclasses.replace(EVERYTHING, dtypes=("float32",)), modules=list
)
