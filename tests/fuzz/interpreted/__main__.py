"""Runs checks of the interpreter in this process, which interprets and nothing else, and prints what failed as JSON."""

import json
import os
import sys
import time
import traceback
import warnings

# before Triton is imported
os.environ["TRITON_INTERPRET"] = "1"

import torch
from attn_fuzz.interpreted import interpreter

torch.set_num_threads(1)
warnings.simplefilter("ignore")
if "--as-it-comes" not in sys.argv:
    interpreter.install()
    interpreter.install()  # twice is once

from interpreted.functions import CHECKED  # noqa: E402

failed: dict[str, str] = {}
seconds: dict[str, float] = {}
for name in [argument for argument in sys.argv[1:] if not argument.startswith("--")] or CHECKED:
    started = time.perf_counter()
    try:
        CHECKED[name]()
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}\n{traceback.format_exc()[-6500:]}"
    seconds[name] = time.perf_counter() - started
print(json.dumps({"failed": failed, "seconds": seconds}))
