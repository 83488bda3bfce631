"""The kernels of IF, LIF and PLIF as nvcc compiles them: the tests of tests/native/test_kernels.py,
as far as conftest.py chooses them."""

import pytest
from test_kernels import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("ptx")
