"""Which exceptions are limits of this tool, and no verdict on the kernel that met them."""

import re
import sys

from attn_fuzz.errors import LimitError
from attn_fuzz.run.exceptions import causes, message_of


def limit_of(error: BaseException | None) -> str | None:
    """The limit of this tool that an exception tells: an instruction and what of it is not known, or a message; None if none.

    Triton's interpreter makes another exception of each that a function of its language raises: the cause tells the limit.
    """
    emulator = sys.modules.get("attn_amdgcn.errors")  # a run without an emulated target does not import it
    unknown = () if emulator is None else (emulator.AssemblyError, emulator.UnknownInstructionError)
    for each in () if error is None else causes(error):
        if isinstance(each, LimitError):
            return message_of(each)
        if isinstance(each, unknown):
            instruction = re.search(r"`(\w+)[^`]*`(: .+)?", str(each))
            return f"{instruction[1]}{instruction[2] or ''}" if instruction else message_of(each)
    return None
