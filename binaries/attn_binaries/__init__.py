"""The binaries of the kernels that ship: compiled in processes of their own, compared with budgets, and listed on a page."""
