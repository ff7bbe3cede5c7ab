"""The size of a failing case."""

import msgspec
from attn_fuzz.cases.case import Case


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """The size of a failing case after `tried` smaller cases. `fields` counts the fields that differ from their defaults."""

    tried: int
    requests: int
    query_rows: int
    keys: int
    blocks: int
    fields: int

    @classmethod
    def of(cls, case: Case, tried: int) -> "Size":
        simplest = Case(target=case.target)
        return cls(
            tried=tried,
            requests=len(case.requests),
            query_rows=case.query_start_loc[-1],
            keys=sum(request.seq_len for request in case.requests),
            blocks=case.cache.num_blocks if case.cache else 0,
            fields=sum(getattr(case, field.name) != getattr(simplest, field.name) for field in msgspec.structs.fields(case)),
        )
