"""LLVM 24, of Triton 3.9.0, for AMD GPUs: two words of a value are spilled as four, over another value's two.

The kernel below adds up what it loads from five tensors, in a loop. A tensor is loaded through four scalar registers: two hold
its address, and two are the same for all tensors. The loop has more masks of lanes than there are scalar registers, so these
fours are kept in lanes of a vector register. Triton 3.9.0 makes this of it for gfx942:

    v_writelane_b32 v48, s12, 14        before the loop, the address of one tensor goes to lanes 14 and 15, once
    v_writelane_b32 v48, s13, 15
    ...
    v_readlane_b32 s12, v48, 14         each turn of the loop loads through it
    buffer_load_dword v46, v46, s[12:15], 0 offen
    ...
    s_mov_b64 s[12:13], s[0:1]          the address of the next tensor
    v_writelane_b32 v48, s12, 14        goes to the same lanes, and stays there

From the second turn on, that load is from the next tensor, and the sums are wrong. What LLVM lists after its register
allocator (DISABLE_LLVM_OPT=print-after-all) has the fault:

    %1147:sgpr_128 = SI_SPILL_S128_RESTORE %stack.0
    undef %1148.sub2_sub3:sgpr_128 = lr-split COPY %1147.sub2_sub3:sgpr_128
    SI_SPILL_S128_SAVE %1148:sgpr_128, %stack.0

The allocator splits off the two words that all tensors have. This part shares the slot of the whole. All four words of it are
spilled, although two are undefined: whatever is in their registers replaces the address. LLVM's issue 225054, open in
September 2026, describes the fault in AITER's attention on gfx950. LLVM's pull request 225220 would spill only the words that
are defined.

The fuzzer met the fault in SGLang's attention, by the case beside this file. A replay refuses the code by name today, because
it has lost an address (`attn_amdgcn.lost_addresses`):

    ATTN_PARITY_SGLANG=sglang-0.5.23 attn-parity replay findings/compilers/llvm-partial-spill.json

On gfx942, the loop's second turn takes a mask of lanes for the address of the slots. With the option
`--target sglang-extend-deterministic@gfx950` it reads the slots from the address of the keys. That is no bad access, and the
outputs are wrong. Without the two v_writelane_b32 that overwrite the address, the emulated outputs are right on both.
On gfx942 a window is enough: in 128 dims, without a soft cap and without sinks, the case fails, too. In 64 dims it agrees.

Triton 3.6.0, 3.7.1 and 3.8.0 make right code of both kernels. This script needs only Triton, and no GPU.
"""

import re
import sys
from typing import Any

import triton
from triton._C.libtriton import llvm
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend

TENSORS, MASKS = 5, 44
LOOP = re.compile(r"^(\.LBB\d+_\d+):\n((?:(?!\.LBB).*\n)*?)\s*s_cbranch_\w+ \1$", re.MULTILINE)
"""A loop of one block: its label, and the code of a turn."""


def kernel(tensors: int = TENSORS, masks: int = MASKS) -> str:
    """LLVM IR of a wave that adds up floats: its lane i takes rows i, i + 64, ... below `rows`.

    A row adds, for each tensor and each mask m: tensor[slots[row]] if row ^ m < bound, else m. Then it adds 1.
    """
    names = ["slots", *(f"tensor{i}" for i in range(tensors))]
    pointers = ", ".join(f"ptr addrspace(1) inreg %{name}" for name in ["out", *names])
    fours = "\n".join(
        f"  %{name}4 = call ptr addrspace(8) @llvm.amdgcn.make.buffer.rsrc.p8.p1(ptr addrspace(1) %{name},"
        " i16 0, i64 2147483646, i32 159744)"
        for name in names
    )
    bits = "\n".join(f"  %row{m} = xor i32 %row, {m}\n  %mask{m} = icmp slt i32 %row{m}, %bound" for m in range(masks))
    sums, total = [], "%sum"
    for i in range(tensors):
        sums += [
            f"  %place{i} = select i1 %mask{i}, i32 %place, i32 -2147483648",
            f"  %value{i} = call float @llvm.amdgcn.raw.ptr.buffer.load.f32(ptr addrspace(8) %tensor{i}4, i32 %place{i},"
            " i32 0, i32 0)",
        ]
        for m in range(masks):
            sums += [
                f"  %term{i}.{m} = select i1 %mask{m}, float %value{i}, float {m}.0",
                f"  %sum{i}.{m} = fadd float {total}, %term{i}.{m}",
            ]
            total = f"%sum{i}.{m}"
    return "\n".join(
        [
            f"define amdgpu_kernel void @kernel({pointers}, i32 inreg %bound, i32 inreg %rows) #0 {{",
            "begin:",
            "  %lane = call i32 @llvm.amdgcn.workitem.id.x()",
            fours,
            "  br label %loop",
            "loop:",
            "  %first = phi i32 [0, %begin], [%next, %loop]",
            "  %sum = phi float [0.0, %begin], [%total, %loop]",
            "  %row = add i32 %first, %lane",
            "  %row.place = shl i32 %row, 2",
            "  %slot = call i32 @llvm.amdgcn.raw.ptr.buffer.load.i32(ptr addrspace(8) %slots4, i32 %row.place, i32 0, i32 0)",
            "  %place = shl i32 %slot, 2",
            bits,
            *sums,
            f"  %total = fadd float {total}, 1.0",
            "  %next = add i32 %first, 64",
            "  %more = icmp slt i32 %next, %rows",
            "  br i1 %more, label %loop, label %end",
            "end:",
            "  %mine = getelementptr float, ptr addrspace(1) %out, i32 %lane",
            "  store float %total, ptr addrspace(1) %mine",
            "  ret void",
            "}",
            'attributes #0 = { nounwind "amdgpu-flat-work-group-size"="1,64" }',
            "declare i32 @llvm.amdgcn.workitem.id.x()",
            "declare ptr addrspace(8) @llvm.amdgcn.make.buffer.rsrc.p8.p1(ptr addrspace(1), i16, i64, i32)",
            "declare i32 @llvm.amdgcn.raw.ptr.buffer.load.i32(ptr addrspace(8), i32, i32, i32)",
            "declare float @llvm.amdgcn.raw.ptr.buffer.load.f32(ptr addrspace(8), i32, i32, i32)",
        ]
    )


def machine_code(source: str, architecture: str = "gfx942") -> str:
    """LLVM's code of a kernel, without comments."""
    llvm.init_targets()
    backend: Any = make_backend(GPUTarget("hip", architecture, 64))
    text = backend.make_amdgcn(source, {}, backend.parse_options({"num_warps": 1}))
    return re.sub(r"[ \t]*;.*", "", text)


def found(code: str) -> list[str]:
    """The lines that `overwritten` finds in the loops of a kernel that are one block."""
    return [line for loop in LOOP.finditer(code) for line in overwritten(loop[2])]


def overwritten(turn: str) -> list[str]:
    """The loads of a loop through an address that a turn reads from a lane and does not leave there.

    Args:
        turn: the code of one turn of the loop.
    """
    held: dict[str, str] = {}  # by register or lane: the lane whose content at the turn's beginning it holds, or ""
    through: dict[str, str] = {}  # by lane: a load through its content
    for line in map(str.strip, turn.splitlines()):
        name, *operands = line.replace(",", " ").split() or [""]
        if name == "v_readlane_b32":
            lane = " ".join(operands[1:])
            held[operands[0]] = held.get(lane, lane)
        elif name == "v_writelane_b32":
            held[" ".join((operands[0], operands[2]))] = held.get(operands[1], "")
        elif name.startswith("s_mov_b"):
            copies = [held.get(register, "") for register in _registers(operands[1])] or ["", ""]
            held.update(zip(_registers(operands[0]), copies, strict=False))
        elif name.startswith("buffer_load"):
            through.update((held.get(register, ""), line) for register in _registers(operands[2])[:2])
        elif operands:
            held.update((register, "") for register in _registers(operands[0]))
    return [f"{line}: {lane}" for lane, line in through.items() if lane and held.get(lane, lane) != lane]


def _registers(operand: str) -> list[str]:
    """The scalar registers that an operand names."""
    if several := re.fullmatch(r"s\[(\d+):(\d+)\]", operand):
        return [f"s{i}" for i in range(int(several[1]), int(several[2]) + 1)]
    return [operand] if re.fullmatch(r"s\d+", operand) else []


def main() -> int:
    """Print what was found, and return the exit code."""
    loads = found(machine_code(kernel()))
    print(f"Triton {triton.__version__}")
    print("expected: a turn of the loop leaves the addresses in lanes as they are")
    print("got: so" if not loads else "got, loads through an address whose lane a turn overwrites:\n  " + "\n  ".join(loads))
    return 1 if loads else 0


if __name__ == "__main__":
    sys.exit(main())
