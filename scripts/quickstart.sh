#!/bin/sh
# Creates an environment and trains a SEW ResNet on handwritten digits, which takes about a minute on two CPU cores.
# Arguments go to `sewsnn train`, e.g. --model.T 8.
EXTRA=train
. "$(dirname "$0")/environment.sh"
"$VENV/bin/sewsnn" info
"$VENV/bin/sewsnn" train configs/digits.yaml --output "runs/digits-$(date +%Y%m%d-%H%M%S)" "$@"
