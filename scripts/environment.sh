# quickstart.sh and test.sh source this file. It creates a virtual environment in .venv with torch and this checkout. It
# builds and installs sewsnn in place: Python imports the source folder when it starts here, so the compiled library
# must be in that folder. These variables change what it does:
#   EXTRA         the extra to install: train or test
#   PYTHON        the Python to use, 3.10 or newer (default python3)
#   VENV          folder of the environment, an absolute path (default .venv)
#   SEWSNN_WHEEL  folder, an absolute path: build a wheel there and install it, as users do, not in place
set -eu
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
VENV=${VENV:-$PWD/.venv}
TORCH=2.13.0

"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed; name one with PYTHON=..." >&2
    exit 1
}
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV" || {
    echo "could not create a virtual environment in $VENV (on Debian and Ubuntu: apt install python3-venv)" >&2
    exit 1
}
python() { "$VENV/bin/python" "$@"; }
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check "$@"; }

if ! python -c 'import torch' 2>/dev/null; then
    if nvidia-smi -L >/dev/null 2>&1; then
        pip install --quiet "torch==$TORCH"
    else
        # Without a GPU, install the CPU build of torch, which has a tenth of the size of the CUDA build. If the package
        # index does not have it under this name, uv finds it.
        echo "no NVIDIA GPU here: installing the CPU build of torch"
        pip install --quiet "torch==$TORCH+cpu" 2>/dev/null || {
            pip install --quiet uv
            python -m uv pip install --quiet --python "$VENV/bin/python" --torch-backend cpu "torch==$TORCH"
        }
    fi
fi
# Without a GPU, compile for one CUDA architecture (if nvcc is installed): this is enough to test that the kernels
# compile. The tests read the machine code, and execute the PTX.
nvidia-smi -L >/dev/null 2>&1 || export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST:-9.0+PTX}"
pip install --quiet "setuptools>=77" wheel ninja "cmake>=3.18"
echo "building and installing sewsnn"
if [ -n "${SEWSNN_WHEEL:-}" ]; then
    rm -rf "$SEWSNN_WHEEL/checkout" "$SEWSNN_WHEEL"/sewsnn-*.whl  # and nothing else that lies there
    PATH="$VENV/bin:$PATH" pip wheel --quiet --no-build-isolation --no-deps --wheel-dir "$SEWSNN_WHEEL" .
    wheel=$(echo "$SEWSNN_WHEEL"/sewsnn-*.whl)
    pip install --quiet "$wheel[$EXTRA]"
    pip install --quiet --no-deps --force-reinstall "$wheel"  # pip keeps an installed wheel of the same version
else
    PATH="$VENV/bin:$PATH" pip install --quiet --no-build-isolation -e ".[$EXTRA]"
fi
