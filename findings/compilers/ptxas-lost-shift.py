"""ptxas 12.8, of Triton 3.6.0 and 3.7.1: a store into shared memory has a wrong address.

The PTX beside this file is a split decode of 256 dims over a SHUFFLED cache, as Triton 3.6.0 made it of this project's kernel
for an H200. The kernel needs more than the 255 registers of a thread. With n, the last three bits of the thread's number, a
store's address is base + 8 * n + 504 * n + (16 * n ^ ...). In the code of ptxas 12.8.93, the register of n takes the sum before
16 * n is computed, which so becomes 16 * sum. The store goes beyond the program's shared memory: "an illegal memory access",
and by compute-sanitizer "Invalid __shared__ write of size 16 bytes". ptxas 12.9.86, of Triton 3.8.0 and 3.9.0, makes right code
of the same PTX.

Since then the kernel loads values with wider masks, and spills nothing. This script needs only Triton, and no GPU.
"""

import gzip
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
PTX = Path(__file__).with_suffix(".ptx.gz")


def machine_code(ptx: bytes, tools: Path = TOOLS) -> list[str]:
    """ptxas's code of a kernel for sm_90a, an instruction a line."""
    with tempfile.TemporaryDirectory() as folder:
        source, binary = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
        source.write_bytes(ptx)
        subprocess.run([tools / "ptxas", "-arch=sm_90a", source, "-o", binary], check=True)
        text = subprocess.run([tools / "nvdisasm", "-c", binary], check=True, capture_output=True, text=True).stdout
    return [line.strip() for line in text.splitlines() if re.match(r"\s*/\*[0-9a-f]{4,}\*/", line)]


def lost_shift(code: list[str]) -> tuple[str, str] | None:
    """The instruction that overwrites n with 504 * n + ..., and the one that then shifts the sum; None if there is none."""
    for place, line in enumerate(code):
        if (product := re.search(r"\bIMAD (R\d+), \1(?:\.reuse)?, 0x1f8, ", line)) is None:
            continue
        register = product[1]
        for later in code[place + 1 :]:
            if re.search(rf"\bIMAD\.SHL\.U32 R\d+, {register}(?:\.reuse)?, 0x10,", later):
                return line, later
            if re.search(rf"\*/\s+(?:@!?P\d+ )?[A-Z0-9_.]+ {register},", later):
                break  # another value from here on
    return None


def main() -> int:
    """Print what was found, and return the exit code."""
    version = subprocess.run([TOOLS / "ptxas", "--version"], check=True, capture_output=True, text=True).stdout.splitlines()[-2]
    found = lost_shift(machine_code(gzip.decompress(PTX.read_bytes())))
    print(f"Triton {triton.__version__}, {version}")
    print("expected: n is shifted before its register takes the sum")
    print("got: so" if found is None else "got:\n  " + "\n  ".join(found))
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main())
