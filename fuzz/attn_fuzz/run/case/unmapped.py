"""Memory between unmapped pages: an access past either end of it faults.

On a CPU the pages beside it are protected (mprotect). On a GPU addresses are reserved, and memory is mapped in the middle of
them: by CUDA's driver (cuMemAddressReserve and its kin) or by HIP, whose functions and structures have the same shapes. Memory
is mapped once and used again: mapping takes longer than a call.
"""

import ctypes
import functools
import mmap
from collections import defaultdict
from typing import Literal, Protocol

import torch
from attn_fuzz.errors import InputError

Side = Literal["end", "beginning"]
"""The end of a range of memory that lies flush against an unmapped page."""
UNMAPPED = 8 << 20
"""The least bytes on either side of a range that are unmapped."""


class NoPagesError(InputError):
    """This machine cannot map memory between unmapped pages for a device."""


class Pages(Protocol):
    """Maps memory of a device.

    Attributes:
        size: sizes and addresses of what is mapped are multiples of it, in bytes.
    """

    size: int

    def mapped(self, size: int) -> int:
        """The address of new memory, of a multiple of `size` bytes, that lies between unmapped pages.

        Raises:
            NoPagesError: the system, or the driver, refuses it.
            torch.OutOfMemoryError: the GPU has no memory left.
        """
        ...

    def tensor(self, address: int, size: int) -> torch.Tensor:
        """[size] uint8: mapped memory as a tensor, whose storage it is."""
        ...


class HostPages:
    size = mmap.PAGESIZE

    def __init__(self) -> None:
        self._protect = ctypes.CDLL(None, use_errno=True).mprotect
        self._protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        self._maps: list[mmap.mmap] = []

    def mapped(self, size: int) -> int:
        self._maps.append(mmap.mmap(-1, size + 2 * UNMAPPED, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        first = ctypes.addressof(ctypes.c_char.from_buffer(self._maps[-1]))
        for address in (first, first + UNMAPPED + size):
            if self._protect(address, UNMAPPED, 0):
                raise NoPagesError(f"mprotect refuses to protect {UNMAPPED} bytes: error {ctypes.get_errno()}")
        return first + UNMAPPED

    def tensor(self, address: int, size: int) -> torch.Tensor:
        return torch.frombuffer((ctypes.c_uint8 * size).from_address(address), dtype=torch.uint8)


class _Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class _Properties(ctypes.Structure):
    """CUmemAllocationProp, hipMemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("requested_handle_types", ctypes.c_int),
        ("location", _Location),
        ("win32_handle_meta_data", ctypes.c_void_p),
        ("flags", ctypes.c_ubyte * 8),
    )


class _Access(ctypes.Structure):
    """CUmemAccessDesc, hipMemAccessDesc."""

    _fields_ = (("location", _Location), ("flags", ctypes.c_int))


_PINNED, _ON_DEVICE, _READ_AND_WRITE, _MINIMUM = 1, 1, 3, 0
_OUT_OF_MEMORY = 2


class DevicePages:
    """Pages of the GPU that is torch's current one."""

    def __init__(self) -> None:
        torch.cuda.synchronize()  # the driver's functions need the context that torch makes
        location = _Location(_ON_DEVICE, torch.cuda.current_device())
        self._properties = _Properties(type=_PINNED, location=location)
        self._access = _Access(location, _READ_AND_WRITE)
        # HIP's library is the one that torch is linked to: the process may find another one by its name
        self._prefix = "hip" if torch.version.hip else "cu"
        try:
            self._library = ctypes.CDLL(torch._C.__file__ if torch.version.hip else "libcuda.so.1")
        except OSError as error:
            raise NoPagesError(f"the driver's library cannot be loaded: {error}") from None
        size = ctypes.c_size_t()
        self._call("MemGetAllocationGranularity", ctypes.byref(size), ctypes.byref(self._properties), _MINIMUM)
        self.size = size.value

    def mapped(self, size: int) -> int:
        handle, first = ctypes.c_uint64(), ctypes.c_uint64()
        beside = -(-UNMAPPED // self.size) * self.size
        number, nothing = ctypes.c_size_t, ctypes.c_uint64(0)
        self._call("MemAddressReserve", ctypes.byref(first), number(size + 2 * beside), number(0), nothing, nothing)
        address = ctypes.c_uint64(first.value + beside)
        self._call("MemCreate", ctypes.byref(handle), number(size), ctypes.byref(self._properties), nothing)
        self._call("MemMap", address, number(size), number(0), handle, nothing)
        self._call("MemSetAccess", address, number(size), ctypes.byref(self._access), number(1))
        return address.value

    def tensor(self, address: int, size: int) -> torch.Tensor:
        return torch.as_tensor(_OfAddress(address, size), device="cuda")

    def _call(self, name: str, *arguments: object) -> None:
        function = getattr(self._library, self._prefix + name, None)
        if function is None:
            raise NoPagesError(f"the driver has no {self._prefix}{name}, which maps memory between unmapped pages")
        code = function(*arguments)
        if code == _OUT_OF_MEMORY:
            raise torch.OutOfMemoryError(f"out of memory in {self._prefix}{name}")
        if code:
            raise NoPagesError(f"{self._prefix}{name} fails with error {code}: this GPU maps no memory between unmapped pages")


class _OfAddress:
    """Memory of a GPU as CUDA's array interface names it. torch reads the interface on ROCm, too."""

    def __init__(self, address: int, size: int) -> None:
        self.__cuda_array_interface__ = {
            "shape": (size,),
            "typestr": "|u1",
            "data": (address, False),
            "strides": None,
            "version": 2,
        }


class Pool:
    """Ranges of memory between unmapped pages, which are used again.

    Their sizes are the size of a page times powers of two, so that there are few of them.
    """

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._free: dict[int, list[int]] = defaultdict(list)
        self._taken: list[tuple[int, int]] = []

    def tensor(self, size: int, side: Side) -> torch.Tensor:
        """[size] uint8: memory that lies flush against the unmapped pages past its end, or before its beginning."""
        mapped = self._pages.size
        while mapped < size:
            mapped *= 2
        address = self._free[mapped].pop() if self._free[mapped] else self._pages.mapped(mapped)
        self._taken.append((mapped, address))
        return self._pages.tensor(address + (mapped - size if side == "end" else 0), size)

    def give_back(self) -> None:
        """Have all memory used again. It stays mapped, so what holds a tensor of it may still read it."""
        for mapped, address in self._taken:
            self._free[mapped].append(address)
        self._taken.clear()


@functools.cache
def pool(device: str) -> Pool:
    """The pool of this process, of "cpu" or "cuda".

    Raises:
        NoPagesError: there is none for this device.
    """
    made = Pool(HostPages() if device == "cpu" else DevicePages())
    made.tensor(1, "end")
    made.give_back()
    return made
