#!/usr/bin/env bash
# What each ingredient is worth, on four tasks, three seeds, and `default` against `paper` and `two-stage`:
#   runs/ablate.sh [options of dynabert ablate, for instance --budget 0.25 --seeds 1]
# Variables and results: runs/study.sh. Not measured; at full budget days on one core.
exec "$(dirname "$0")/study.sh" ablate "$@"
