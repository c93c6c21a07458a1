#!/usr/bin/env bash
# The studies at full size on a CUDA device: comparison and ablations on SST-2, MNLI and QNLI, three seeds, then early
# exit and attention of each run:  runs/gpu.sh
# Needs DYNABERT_DATA; TASKS, ROWS and MODEL as in runs/four-tasks.sh. Goes on where it was interrupted. Trains in
# runs/gpu/, writes docs/results/gpu-*.json. Has not been run in full: how long it takes is not known.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! .venv/bin/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
  echo 'no GPU: torch.cuda.is_available() is false, so nothing was run' >&2
  exit 2
fi
export TASKS=${TASKS:-sst2 mnli qnli} ROWS=${ROWS:-0} RUNS=runs/gpu RESULTS=docs/results/gpu-
runs/compare.sh
runs/ablate.sh
RESULTS=docs/results/gpu-two-stage- runs/ablate.sh --recipe two-stage --factors rewiring,distillation,assistant,teacher-width
for task in $TASKS; do
  .venv/bin/dynabert exits "$RUNS/$task" --json > "${RESULTS}exits-$task.json.part"
  mv "${RESULTS}exits-$task.json.part" "${RESULTS}exits-$task.json"
  .venv/bin/dynabert attention "$RUNS/$task" --out "${RESULTS}attention-$task.json" --plot "${RESULTS}attention-$task.svg"
done
