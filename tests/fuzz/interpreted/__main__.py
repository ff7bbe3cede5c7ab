"""Runs checks of the interpreter in this process, which interprets and nothing else, and prints what failed as JSON.

With --forms it prints what every form of every argument gives (forms.py). With --names it prints the names of the language, and
with --write-names it stores them (names.py).
"""

import contextlib
import json
import os
import sys
import time
import traceback
import warnings

# before Triton is imported
os.environ["TRITON_INTERPRET"] = "1"

import torch
from attn_fuzz.exact import interpreter as exact_interpreter
from attn_fuzz.interpreted import interpreter

torch.set_num_threads(1)
warnings.simplefilter("ignore")
as_it_comes, exact = "--as-it-comes" in sys.argv, "--exact" in sys.argv
if not as_it_comes:
    install = exact_interpreter.install if exact else interpreter.install
    install()
    install()  # twice is once

names = [argument for argument in sys.argv[1:] if not argument.startswith("--")]

from tests.fuzz.interpreted import forms  # noqa: E402
from tests.fuzz.interpreted.functions import CHECKED  # noqa: E402

if "--names" in sys.argv:
    from tests.fuzz.interpreted.names import generated

    print(json.dumps(sorted(generated())))
    sys.exit()

if "--write-names" in sys.argv:
    from tests.fuzz.interpreted.names import write

    write()
    sys.exit()

if "--forms" in sys.argv:
    if as_it_comes:
        forms.prepare_judge()
    with contextlib.redirect_stdout(sys.stderr):  # tl.device_print
        found = forms.outcomes(names, follow=exact, judge=as_it_comes)
    print(json.dumps(found))
    sys.exit()

failed: dict[str, str] = {}
seconds: dict[str, float] = {}
for name in names or CHECKED:
    started = time.perf_counter()
    try:
        CHECKED[name]()
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}\n{traceback.format_exc()[-6500:]}"
    seconds[name] = time.perf_counter() - started
print(json.dumps({"failed": failed, "seconds": seconds}))
