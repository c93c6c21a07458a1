#!/usr/bin/env bash
# Several seeds of DynaBERT beside other methods, each seed with a teacher of its own, and all of them in one table:
#   runs/seeds.sh [options of dynabert compare]
# For each seed S trains runs/four-S/TASK (runs/four-tasks.sh) and compares its sizes, then its best cascades, with
# METHODS: docs/results/seed-S-compare-TASK.json and seed-S-cascade-compare-TASK.json, where RTE is called
# rte-after-mnli. Those of all seeds are pooled in seeds-compare.json and seeds-cascade-compare.json there. The encoder
# that RTE starts from is fine-tuned on MNLI-part once, in runs/mnli-start (MNLI_START=DIR), for all seeds, so that the
# chance of that is in no interval. Goes on where it was interrupted.
# SEEDS="43 44", TASKS="trec cola", METHODS=fastbert,deebert: fewer; RESULTS=DIR/PREFIX-: elsewhere.
# Needs DYNABERT_DATA. Three to six hours a seed on one core with bf16, by the minutes in docs/LOG.md; not run in one go.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra tasks <<< "${TASKS:-sst2 cola rte trec}"
read -ra seeds <<< "${SEEDS:-42 43 44}"
methods=${METHODS:-fastbert,deebert,alone,layerdrop}
results=${RESULTS:-docs/results/}
mkdir -p "$(dirname "${results}x")"

compare() { # RUN OURS METHODS FILE [options]
  local run=$1 ours=$2 names=$3 file=$4
  shift 4
  .venv/bin/dynabert compare "$run" --ours "$ours" --methods "$names" --seeds 1 --lrs 1e-4 "$@"
  cp "$run/studies/compare.json" "$file"
}

sizes=() cascades=()
for seed in "${seeds[@]}"; do
  SEEDS=$seed RUNS=runs/four-$seed MNLI_START=${MNLI_START:-runs/mnli-start} TASKS="${tasks[*]}" runs/four-tasks.sh
  for task in "${tasks[@]}"; do
    run=runs/four-$seed/$task
    name=${task/%rte/rte-after-mnli}
    sizes+=("${results}seed-$seed-compare-$name.json")
    compare "$run" dynabert "$methods,dynabert-cascade" "${sizes[-1]}" "$@"
    cascades+=("${results}seed-$seed-cascade-compare-$name.json")
    compare "$run" dynabert-cascade "$methods" "${cascades[-1]}" "$@"
  done
done
.venv/bin/python runs/pool.py "${sizes[@]}" --json "${results}seeds-compare.json"
.venv/bin/python runs/pool.py "${cascades[@]}" --json "${results}seeds-cascade-compare.json"
