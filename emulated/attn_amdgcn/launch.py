"""Runs a kernel's grid: arguments, registers at the start, workgroups by batches."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from attn_amdgcn.assembly import LDS_BYTES, MAX_THREADS, Kernel
from attn_amdgcn.errors import Hazards, LaunchError, UnknownInstructionError
from attn_amdgcn.global_races import GlobalRaces
from attn_amdgcn.instructions.buffer_memory import PRIVATE_WORDS, private_offset
from attn_amdgcn.lds_loads import LdsLoads
from attn_amdgcn.lds_races import LdsRaces
from attn_amdgcn.memory import Memory, PermittedBytes
from attn_amdgcn.program import Program
from attn_amdgcn.run import MAX_INSTRUCTIONS, Runner
from attn_amdgcn.watch import Watch
from attn_amdgcn.waves import EXEC, SCALARS, TTMP, Shared, Waves

WAVES_AT_ONCE = 128
"""Workgroups run together up to about this many waves: more of them no longer make numpy faster."""
MAX_WORKGROUPS = 1 << 24
SCRATCH_AT_ONCE = 1 << 26
"""Bytes of the lanes of workgroups that run together."""
Argument = int | float | tuple[str, int] | None
"""An argument of a kernel: a number, a place in a buffer, or a null pointer."""
_FLOATS = {4: np.float32, 8: np.float64}
ARGUMENTS = "kernel arguments"
"""The name of the buffer that holds the kernel's arguments."""
_ORDERS = ("ascending", "descending", "drawn")
POINTER = "user_sgpr_kernarg_segment_ptr"
"""The setting that reserves scalar registers for the pointer to the arguments."""
DISPATCH = "dispatch packet"
"""The name of the buffer with the packet that describes the launch to the hardware, for a kernel that asks for its address."""
DISPATCH_POINTER = "user_sgpr_dispatch_ptr"
USER_REGISTERS = {
    "user_sgpr_private_segment_buffer": 4,
    DISPATCH_POINTER: 2,
    "user_sgpr_queue_ptr": 2,
    POINTER: 2,
    "user_sgpr_dispatch_id": 2,
}
"""The number of scalar registers of each setting, in their order (LLVM: User Guide for AMDGPU Backend, "Initial Kernel
Execution State"). There is no queue and no number of the dispatch here: their registers hold junk."""
NOWHERE = 0x0BAD_0000_0000
"""An address in no buffer, for hidden arguments whose targets do not exist here: reading there is a fault."""
_NOT_HERE = "hostcall_buffer multigrid_sync_arg heap_v1 default_queue completion_action queue_ptr"


@dataclass(frozen=True)
class Schedule:
    """The order in which a launch runs what may run in any order, and what its registers hold before they are written.

    Attributes:
        waves: "together", "ascending", "descending" or "drawn": the order of a workgroup's waves between barriers.
        workgroups: "ascending", "descending" or "drawn": the order of workgroups.
        seed: the seed of what is drawn, and of what registers, LDS and scratch hold before they are written.
        races: True if to look for races (`attn_amdgcn.global_races` and `lds_races`), which takes longer.
    """

    waves: str = "together"
    workgroups: str = "ascending"
    seed: int = 0
    races: bool = False

    def __post_init__(self) -> None:
        if self.waves not in ("together", *_ORDERS) or self.workgroups not in _ORDERS:
            raise LaunchError(f"schedule {self.waves!r}, {self.workgroups!r}: 'together' for waves, or one of {_ORDERS}")


@dataclass(frozen=True)
class Report:
    executed: np.ndarray
    """The number of waves that ran each instruction, in the order of the text."""

    @property
    def wave_instructions(self) -> int:
        return int(self.executed.sum())


def launch(
    program: Program,
    grid: tuple[int, int, int],
    arguments: Sequence[Argument],
    buffers: Mapping[str, np.ndarray],
    *,
    lds_bytes: int = 0,
    schedule: Schedule = Schedule(),
    watches: Sequence[Watch] = (),
    permitted: PermittedBytes | None = None,
    most: int = MAX_INSTRUCTIONS,
    hazards: Hazards | None = None,
) -> tuple[Memory, Report]:
    """Run a grid of workgroups.

    Args:
        program: the kernel.
        grid: numbers of workgroups in x, y and z.
        arguments: of the kernel without hidden ones, in order. A pointer is None, or the name of a buffer and a byte of it;
            a number fills its 1 to 8 bytes.
        buffers: uint8 bytes of each buffer; they are copied.
        lds_bytes: the bytes of dynamic LDS of each workgroup.
        schedule: the order of waves and workgroups.
        watches: the observers of the run.
        permitted: the bytes of buffers that may be touched; None: all.
        most: the number of instructions that all waves together may run.
        hazards: the record of faults of that kind, after which the launch goes on. None: they end it.

    Returns:
        Memory after the launch, and what the launch did.

    Raises:
        LaunchError: the arguments do not fit the kernel.
        EmulationFault: a wave did what it must not do.
    """
    kernel = program.kernel
    _check(kernel, grid, lds_bytes)
    if taken := next((name for name in (ARGUMENTS, DISPATCH) if name in buffers), None):
        raise LaunchError(f"a buffer is named {taken!r}: the name is taken")
    own = {ARGUMENTS: np.zeros(max(kernel.argument_bytes, 4), np.uint8)}
    if kernel.settings.get(DISPATCH_POINTER):
        own[DISPATCH] = _dispatch_packet(kernel, grid)
    memory = Memory({**buffers, **own}, schedule.seed, permitted)
    _fill_arguments(memory, kernel, grid, arguments, lds_bytes)
    runner = Runner(program, most=most)
    everywhere = (GlobalRaces(memory), *watches) if schedule.races else tuple(watches)
    of_lds = [LdsLoads] * program.loads_into_lds + [LdsRaces] * schedule.races
    numbers = np.arange(int(np.prod(grid)))
    rng = np.random.default_rng(schedule.seed)
    if schedule.workgroups == "descending":
        numbers = numbers[::-1].copy()
    elif schedule.workgroups == "drawn":
        rng.shuffle(numbers)
    num_waves = -(-kernel.threads // kernel.wave_size)
    scratch = num_waves * kernel.wave_size * max(1, kernel.scratch_bytes)
    at_once = max(1, min(WAVES_AT_ONCE // num_waves, SCRATCH_AT_ONCE // scratch))
    with np.errstate(all="ignore"):
        for first in range(0, len(numbers), at_once):
            batch = numbers[first : first + at_once]
            lds = _lds(len(batch), lds_bytes + kernel.lds_bytes, rng)
            in_lds = tuple(kind(len(batch), num_waves, 4 * lds.shape[1]) for kind in of_lds)
            shared = Shared(memory, lds, lds_bytes + kernel.lds_bytes, kernel.scratch_bytes, (*in_lds, *everywhere), hazards)
            waves = _start(kernel, shared, grid, batch, num_waves, rng)
            runner.run(_turns(waves, schedule, rng))
    return memory, Report(np.repeat(runner.executed, [len(block.code) for block in program.blocks]))


def _check(kernel: Kernel, grid: tuple[int, int, int], lds_bytes: int) -> None:
    if len(grid) != 3 or not all(isinstance(number, int) and number >= 1 for number in grid):
        raise LaunchError(f"grid {grid}: three integers are expected, each at least 1")
    if math.prod(grid) > MAX_WORKGROUPS:
        raise LaunchError(f"grid {grid}: more than {MAX_WORKGROUPS} workgroups")
    if kernel.threads > MAX_THREADS:
        raise LaunchError(f"a workgroup of {kernel.threads} lanes: it has at most {MAX_THREADS}")
    most = LDS_BYTES.get(kernel.architecture, 64 << 10)
    if not isinstance(lds_bytes, int) or not 0 <= lds_bytes <= most - kernel.lds_bytes:
        raise LaunchError(f"lds_bytes {lds_bytes}: an integer from 0 to {most - kernel.lds_bytes} is expected")


def _turns(waves: Waves, schedule: Schedule, rng: np.random.Generator) -> list[Waves]:
    if schedule.waves == "together":
        return [waves]
    numbers = np.unique(waves.number)
    if schedule.waves == "descending":
        numbers = numbers[::-1]
    elif schedule.waves == "drawn":
        rng.shuffle(numbers)
    return [waves.taken(np.flatnonzero(waves.number == number)) for number in numbers]


def _lds(workgroups: int, lds_bytes: int, rng: np.random.Generator) -> np.ndarray:
    """[workgroups, words] uint32: the LDS of some workgroups, which holds junk."""
    return rng.integers(0, 1 << 32, (workgroups, -(-lds_bytes // 16) * 4), np.uint32)


def _start(
    kernel: Kernel, shared: Shared, grid: tuple[int, int, int], batch: np.ndarray, num_waves: int, rng: np.random.Generator
) -> Waves:
    """The waves of some workgroups with their registers at the start. What no rule sets holds junk."""
    settings, lanes = kernel.settings, kernel.wave_size
    workgroup, number = np.repeat(batch, num_waves), np.tile(np.arange(num_waves), len(batch))
    count, scratch_words = len(workgroup), -(-kernel.scratch_bytes // 4)

    def junk(*shape: int) -> np.ndarray:
        return rng.integers(0, 1 << 32, shape, np.uint32)

    waves = Waves(
        np.broadcast_to(junk(settings["next_free_vgpr"], 1, lanes), (settings["next_free_vgpr"], count, lanes)).copy(),
        np.broadcast_to(junk(SCALARS), (count, SCALARS)).copy(),
        workgroup=workgroup,
        number=number,
        slot=np.repeat(np.arange(len(batch)), num_waves),
        scratch=np.broadcast_to(junk(scratch_words, 1, lanes), (scratch_words, count, lanes)).copy(),
        shared=shared,
    )
    _set_scalars(waves, kernel, shared.memory, grid)
    waves.vector[0] = number[:, None] * lanes + np.arange(lanes)  # with bits 19:10 and 29:20 for y and z, which are 0
    lanes_of = [min(lanes, kernel.threads - wave * lanes) for wave in number.tolist()]
    waves.scalar64[:, EXEC // 2] = np.array([(1 << count) - 1 for count in lanes_of], np.uint64)
    waves.switch()
    return waves


def _set_scalars(waves: Waves, kernel: Kernel, memory: Memory, grid: tuple[int, int, int]) -> None:
    """User registers, then the numbers of the workgroup: in registers, or in ttmp from gfx12 on.

    User registers are in the order of USER_REGISTERS. The first ones are the resource of the private segment, which gfx90a has.
    After the numbers of the workgroup is the offset of the wave in the private segment.
    """
    settings = kernel.settings
    wanted = [name for name, value in settings.items() if name.startswith("user_sgpr_") and value and name != "user_sgpr_count"]
    preloads = {"user_sgpr_kernarg_preload_length", "user_sgpr_kernarg_preload_offset"}
    registers = [name for name in wanted if name not in preloads]
    if not USER_REGISTERS.keys() >= {*registers}:
        raise UnknownInstructionError(f"registers at the start: {', '.join(wanted)}")
    if "user_sgpr_private_segment_buffer" in registers:
        waves.scalar[:, :4] = PRIVATE_WORDS
    for pointer, buffer in ((POINTER, ARGUMENTS), (DISPATCH_POINTER, DISPATCH)):
        if pointer in registers:
            before = sum(USER_REGISTERS[name] for name in registers[: registers.index(pointer)])
            waves.scalar64[:, before // 2] = memory.buffers[buffer].address
    x, y, z = waves.workgroup % grid[0], waves.workgroup // grid[0] % grid[1], waves.workgroup // (grid[0] * grid[1])
    if kernel.architecture.startswith("gfx12"):
        waves.scalar[:, TTMP + 9] = x
        waves.scalar[:, TTMP + 7] = y | z << 16
        waves.scalar[:, TTMP + 8] = waves.number << 25
        return
    place = settings["user_sgpr_count"]
    for name, value in (("x", x), ("y", y), ("z", z)):
        if settings.get(f"system_sgpr_workgroup_id_{name}", name == "x"):
            waves.scalar[:, place] = value
            place += 1
    if settings.get("system_sgpr_private_segment_wavefront_offset"):
        waves.scalar[:, place] = private_offset(waves)


def _dispatch_packet(kernel: Kernel, grid: tuple[int, int, int]) -> np.ndarray:
    """The sizes in a packet of AQL (HSA Platform System Architecture, "Kernel dispatch packet"). Its pointers are null."""
    lanes = (kernel.threads, 1, 1)
    sizes = np.zeros(16, np.uint32)
    sizes[:6] = 3 << 16, lanes[0] | lanes[1] << 16, lanes[2], *(a * b for a, b in zip(lanes, grid, strict=True))
    return sizes.view(np.uint8)


def _fill_arguments(
    memory: Memory, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Argument], lds_bytes: int
) -> None:
    """Write the arguments, and the hidden ones that the code object's version 5 appends, into their buffer."""
    data = memory.contents(ARGUMENTS)
    hidden = {
        **{f"hidden_block_count_{axis}": count for axis, count in zip("xyz", grid, strict=True)},
        **{f"hidden_group_size_{axis}": size for axis, size in zip("xyz", (kernel.threads, 1, 1), strict=True)},
        **{f"hidden_remainder_{axis}": 0 for axis in "xyz"},
        **{f"hidden_global_offset_{axis}": 0 for axis in "xyz"},
        "hidden_grid_dims": 3,
        "hidden_dynamic_lds_size": lds_bytes,
        **{f"hidden_{name}": NOWHERE for name in _NOT_HERE.split()},
    }
    own = [argument for argument in kernel.arguments if not argument.kind.startswith("hidden_")]
    if len(own) != len(arguments):
        raise LaunchError(f"{len(arguments)} arguments, and the kernel has {len(own)}")
    for argument, value in zip(own, arguments, strict=True):
        if (argument.kind == "global_buffer") != (value is None or isinstance(value, tuple)):
            raise LaunchError(f"argument {value!r} at byte {argument.offset}: the kernel has a {argument.kind} there")
        data[argument.offset : argument.offset + argument.size] = _bytes(memory, value, argument.size)
    for argument in kernel.arguments:
        if argument.kind.startswith("hidden_"):
            if argument.kind not in hidden:
                raise UnknownInstructionError(f"argument {argument.kind}")
            data[argument.offset : argument.offset + argument.size] = _bytes(memory, hidden[argument.kind], argument.size)


def _bytes(memory: Memory, value: Argument, size: int) -> np.ndarray:
    if isinstance(value, tuple):
        name, byte = value
        if name not in memory.buffers:
            raise LaunchError(f"argument {name!r}: there is no such buffer")
        value = memory.buffers[name].address + byte
    if isinstance(value, float) and size in _FLOATS:
        return np.array([value], _FLOATS[size]).view(np.uint8)
    number = 0 if value is None else value
    if not isinstance(number, int) or not -(1 << 8 * size - 1) <= number < 1 << 8 * size:
        raise LaunchError(f"argument {value!r}: {size} bytes do not hold it")
    return np.frombuffer((number & (1 << 8 * size) - 1).to_bytes(size, "little"), np.uint8)
