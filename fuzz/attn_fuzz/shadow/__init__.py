"""A shadow of a KV cache: it records the writer, the request and the slot of each key, and checks what attention reads.

An engine reports its writes, forks, copies, roll-backs and frees to a `Shadow`. `Shadow.read` names the faults in the keys that
attention gets. A shadow judges no outputs, as a recording does: attention can be right over wrong keys.
"""

from attn_fuzz.shadow.contents import Contents, contents_of
from attn_fuzz.shadow.faults import CacheFault, FaultKind, Written
from attn_fuzz.shadow.shadow import Shadow
from attn_fuzz.shadow.steps import PagedStep, Reader, reader_of

__all__ = ["CacheFault", "Contents", "FaultKind", "PagedStep", "Reader", "Shadow", "Written", "contents_of", "reader_of"]
