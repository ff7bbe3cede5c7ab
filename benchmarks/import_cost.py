"""What `import attn_optimized` costs beyond torch and triton, in fresh processes: `python -m benchmarks.import_cost`."""

import statistics
import subprocess
import sys

PROCESSES = 7
MODULES = ("attn_contract", "attn_optimized", "attn_optimized.backends")


def main() -> None:
    for module in MODULES:
        print(f"{module:24} {statistics.median(seconds(module) for _ in range(PROCESSES)):.3f} s")


def seconds(module: str) -> float:
    """Seconds that one import takes in a new process that has torch and triton already."""
    code = f"import time, torch, triton; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
