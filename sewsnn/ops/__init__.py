"""The compiled ops: loading, fake kernels and autograd formulas, with a readable reference implementation."""
