"""Runs pytest on the pretended CUDA device:

    python tests/device PYTEST_ARGUMENTS        for example  tests/test_gradients.py -m cuda

It builds the device if needed (device_build.py). This is a program and no plugin of pytest, because the device must be
loaded before torch, and other plugins import torch.
"""

import os
import sys
from pathlib import Path

import cannot
import device_build
import pretend
import pytest  # its plugins, which import torch, are loaded by pytest.main


class Plugin:
    """Fails a test during which something was wrong where nothing could be raised; reports the number of launches."""

    def __init__(self, device: pretend.Pretended):
        self.pretended = device

    def pytest_collection_modifyitems(self, items):
        for item in items:
            if why := cannot.reason(item.nodeid):
                item.add_marker(pytest.mark.skip(reason=f"not on the pretended device: {why}"))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        try:
            result = yield
        finally:
            self.pretended.forbid_waiting(False)
            self.pretended.kernels()
            problems = self.pretended.problems()
        assert not problems, problems
        return result

    def pytest_terminal_summary(self, terminalreporter):
        terminalreporter.write_line(f"{self.pretended.launches()} kernels ran on the pretended CUDA device")


def main() -> int:
    reason = device_build.why_not() if "torch" in sys.modules else None
    if reason:
        raise SystemExit(reason)
    folder = Path(os.environ.get("SEWSNN_DEVICE") or device_build.build())
    device = pretend.install(folder)

    class Registration:
        @staticmethod
        def pytest_configure(config):
            config.pluginmanager.register(Plugin(device), "pretended")

    return pytest.main(sys.argv[1:], plugins=[Registration])


if __name__ == "__main__":
    sys.exit(main())
