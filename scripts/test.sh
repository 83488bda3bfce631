#!/bin/sh
# Sets up an environment and runs the tests. Arguments go to pytest, e.g. -k layout.
EXTRA=test
. "$(dirname "$0")/environment.sh"
"$VENV/bin/sewsnn" info
exec "$VENV/bin/pytest" "$@"
