"""What emulation is worth: mutants of compiled kernels, and how many of them the emulator and the judge find."""
