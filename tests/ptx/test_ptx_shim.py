"""Faults in kernels that nvcc has compiled, and the bytes that kernels move: the tests of tests/native/test_shim.py and
test_bytes.py."""

import pytest
from test_bytes import *  # noqa: F403
from test_bytes import test_batch_norm_portions, test_portions  # noqa: F401
from test_shim import *  # noqa: F403

pytestmark = pytest.mark.usefixtures("ptx")
