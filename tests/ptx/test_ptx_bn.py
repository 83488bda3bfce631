"""The kernels of batch norm + neuron + connection as nvcc compiles them: the tests of tests/native/test_bn_kernels.py,
as far as conftest.py chooses them."""

import pytest
from test_bn_kernels import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("ptx")
