"""What the compilers make of others' attention kernels beside ours, for GPUs that need not be here."""
