"""The compiled ops: loading, fake kernels, autograd, and the readable reference beside them."""
