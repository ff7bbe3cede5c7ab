"""Stages of a decode that chooses its keys."""
