#!/bin/sh
# Sets up an environment and trains the quick start: a SEW ResNet on handwritten digits, about a minute on two cores.
# Arguments go to `sewsnn train`, e.g. --model.T 8.
EXTRA=train
. "$(dirname "$0")/environment.sh"
"$VENV/bin/sewsnn" info
"$VENV/bin/sewsnn" train configs/digits.yaml --output "runs/digits-$(date +%Y%m%d-%H%M%S)" "$@"
