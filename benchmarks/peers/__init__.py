"""Others' attention kernels beside ours, launch by launch, for GPUs that need not be here."""
