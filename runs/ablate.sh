#!/usr/bin/env bash
# What each ingredient is worth, on four tasks, three seeds, and `default` against `paper` and `sandwich`:
#   runs/ablate.sh [options of dynabert ablate, for instance --budget 0.25 --seeds 1]
# Trains runs/four/ first where it is missing. Goes on where it was interrupted. Writes docs/results/ablate-TASK.json and
# docs/results/ablate.json, the mean over the tasks. Not measured; at full budget days on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
runs/four-tasks.sh
mkdir -p docs/results
runs=(runs/four/{sst2,cola,rte,trec})
.venv/bin/dynabert ablate "${runs[@]}" --json "$@" > docs/results/ablate.json
for run in "${runs[@]}"; do cp "$run/studies/ablate.json" "docs/results/ablate-$(basename "$run").json"; done
