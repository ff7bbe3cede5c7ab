"""The account of a run: which mistakes it would have seen, and where.

A mistake (`attn_fuzz.mistakes`) is another call of the reference. A case could have shown it if the reference's output with the
mistake differs from the right one by more than the judge allows: had the kernel made this mistake, the case would have failed.
`asking` asks this of the cases of a run that agree. `account` keeps the answers, by the place that a case has been in: a path
of the kernel, and the layout and the dtype of the cache. `gaps` says which mistakes no case could have shown.

The account is a table of mistakes in numbers. It holds no races, no memory that is written or read where it must not be, no
state that outlives a call, and no wrong machine code. Checks of their own look for these (docs/reference/account.md).
"""
