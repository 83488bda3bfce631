#!/bin/sh
# Sets up an environment and runs the tests. Arguments go to pytest, e.g. -k layout.
EXTRA=test
. "$(dirname "$0")/environment.sh"
"$VENV/bin/sewsnn" info
# Two versions of SpikingJelly to convert models of, in folders of their own: they cannot both be installed. 2.0 imports h5py
# and loguru; what else they depend on is here, or (torchvision) not needed. Where they cannot be had, their tests are skipped.
for version in 0.0.0.0.14 2.0.0; do
    folder=$VENV/spikingjelly/$version
    [ "$version" = 2.0.0 ] && ! python -c 'import sys; sys.exit(sys.version_info < (3, 11))' && continue
    [ -d "$folder/spikingjelly" ] && continue
    pip install --quiet --no-deps --target "$folder" "spikingjelly==$version" h5py loguru ||
        echo "SpikingJelly $version could not be installed" >&2
done
exec "$VENV/bin/pytest" "$@"
