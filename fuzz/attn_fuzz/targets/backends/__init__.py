"""Backends that ship with the project, as targets: plain ones, those of latent attention, and those with a selection."""
