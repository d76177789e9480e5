"""Triton kernels: fewer passes over memory, each an operation that torch knows by name.

Which of them, or of their plain twins, runs is decided in :mod:`.dispatch`; the kernels themselves
are imported only where Triton is.
"""
