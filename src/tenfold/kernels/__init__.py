"""Compiled kernels and what loads them: C++ in csrc/, Triton in the *_triton files; what this machine can do (machine.py)."""
