#!/bin/sh
# Creates an environment and runs the tests. Arguments go to pytest, e.g. -k layout. SEWSNN_THOROUGH=1 tests more
# (CONTRIBUTING.md).
EXTRA=test
. "$(dirname "$0")/environment.sh"
"$VENV/bin/sewsnn" info
# Two versions of SpikingJelly, for the tests that convert its models. Each has its own folder, because one environment
# cannot have both. 2.0 imports h5py and loguru. Their other dependencies are installed already or, like torchvision,
# not needed. If a version cannot be installed, its tests are skipped.
for version in 0.0.0.0.14 2.0.0; do
    folder=$VENV/spikingjelly/$version
    [ "$version" = 2.0.0 ] && ! python -c 'import sys; sys.exit(sys.version_info < (3, 11))' && continue
    [ -d "$folder/spikingjelly" ] && continue
    pip install --quiet --no-deps --target "$folder" "spikingjelly==$version" h5py loguru ||
        echo "SpikingJelly $version could not be installed" >&2
done
# The torchvision for this version of torch, without its dependencies: pip would replace torch by the CUDA build. Pillow
# is installed with matplotlib. The tests write shards with webdataset, and read shards that sewsnn wrote with it.
pip install --quiet --no-deps torchvision==0.28.0 webdataset==1.0.2 braceexpand==0.1.7 ||
    echo "torchvision could not be installed: the tests of ImageNet are skipped" >&2
# NVIDIA DALI (0.9 GB) and its imports, in a separate folder; its tests also run without a GPU. SEWSNN_DALI names
# another folder.
if [ -z "${SEWSNN_DALI:-}" ] && [ ! -d "$VENV/dali/nvidia/dali" ]; then
    pip install --quiet --no-deps --target "$VENV/dali" nvidia-dali-cuda120==2.4.0 nvidia-nvimgcodec-cu12==0.9.0.20 \
        astunparse==1.6.3 gast==0.7.0 six==1.17.0 optree==0.20.0 packaging ||
        echo "NVIDIA DALI could not be installed: its tests are skipped" >&2
fi
# A wheel is tested in a copy of this checkout, in which a link to the installed package replaces the source folder.
if [ -n "${SEWSNN_WHEEL:-}" ]; then
    mkdir "$SEWSNN_WHEEL/checkout"
    git ls-files -z | grep -zv '^sewsnn/' | xargs -0 cp --parents -t "$SEWSNN_WHEEL/checkout"
    ln -s "$(cd / && "$VENV/bin/python" -c 'import pathlib, sewsnn; print(pathlib.Path(sewsnn.__file__).parent)')" \
        "$SEWSNN_WHEEL/checkout/sewsnn"
    cd "$SEWSNN_WHEEL/checkout"
fi
# Without a GPU and without arguments: run one test process per processor (at most 8), each with one thread.
if [ $# -eq 0 ] && ! nvidia-smi -L >/dev/null 2>&1; then
    export OMP_NUM_THREADS=1
    set -- -n "$(python -c 'import os; print(min(8, len(os.sched_getaffinity(0))))')" --dist loadscope --no-loadscope-reorder
fi
exec "$VENV/bin/pytest" "$@"
