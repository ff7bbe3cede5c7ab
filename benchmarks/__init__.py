"""Speed beside that of other projects, launch parameters, hashes of binaries, and how sharp the judge is."""
