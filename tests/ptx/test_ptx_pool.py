"""The kernels of the stem as nvcc compiles them: the tests of tests/native/test_pool_kernels.py,
as far as conftest.py chooses them."""

import pytest
from test_pool_kernels import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("ptx")
