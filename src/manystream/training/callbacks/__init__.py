"""Callbacks of a run; those that a user sees are off unless asked for."""
