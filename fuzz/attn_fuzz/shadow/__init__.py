"""A shadow of a KV cache: who wrote which key of which request where, to hold what attention is handed to it.

`Shadow` is told what an engine does: writes, forks, copies, roll-backs, frees. Its `read` names the faults in what attention is
handed. It sees no attention, and its verdict stands beside that of a recording: attention can be right over wrong keys.
"""

from attn_fuzz.shadow.contents import Contents, contents_of
from attn_fuzz.shadow.faults import Fault, Kind, Written
from attn_fuzz.shadow.shadow import Shadow
from attn_fuzz.shadow.steps import PagedStep, Reader, reader_of

__all__ = ["Contents", "Fault", "Kind", "PagedStep", "Reader", "Shadow", "Written", "contents_of", "reader_of"]
