"""What the compilers make of the kernels that ship: built in processes of their own, held to budgets, told on a page."""
