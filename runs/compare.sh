#!/usr/bin/env bash
# DynaBERT beside LayerDrop, DeeBERT, FastBERT, the first layers and each size alone, on four tasks, three seeds:
#   runs/compare.sh [options of dynabert compare]
# Trains runs/four/ first where it is missing. Goes on where it was interrupted. Writes docs/results/compare-TASK.json
# and docs/results/compare.json, the mean over the tasks. Estimated from TREC with one seed and rate: days on one core.
set -euo pipefail
cd "$(dirname "$0")/.."
runs/four-tasks.sh
mkdir -p docs/results
runs=(runs/four/{sst2,cola,rte,trec})
.venv/bin/dynabert compare "${runs[@]}" --seeds 3 --lrs 5e-5,1e-4,2e-4 --json "$@" > docs/results/compare.json
for run in "${runs[@]}"; do cp "$run/studies/compare.json" "docs/results/compare-$(basename "$run").json"; done
