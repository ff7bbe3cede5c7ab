"""The binaries of the kernels that ship: compiled in processes of their own, held to budgets, and listed on a page."""
