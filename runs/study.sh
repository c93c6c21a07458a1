#!/usr/bin/env bash
# A study over the runs of runs/four-tasks.sh:  runs/study.sh compare|ablate [options of that command]
# Trains them first where they are missing; TASKS, ROWS, RUNS and MODEL are those of that script. Goes on where it was
# interrupted. Writes docs/results/STUDY-TASK.json for each task and docs/results/STUDY.json, the mean over them, and of
# a comparison docs/results/compare.svg; RESULTS=docs/results/gpu- puts that before the names.
set -euo pipefail
cd "$(dirname "$0")/.."
study=$1
shift
runs/four-tasks.sh
results=${RESULTS:-docs/results/}$study
mkdir -p "$(dirname "$results")"
read -ra tasks <<< "${TASKS:-sst2 cola rte trec}"
runs=("${tasks[@]/#/${RUNS:-runs/four}/}")
plot=()
if [[ $study == compare ]]; then plot=(--plot "$results.svg"); fi
.venv/bin/dynabert "$study" "${runs[@]}" "${plot[@]}" --json "$@" > "$results.json.part"
mv "$results.json.part" "$results.json" # so that an interrupted study leaves what an earlier one found
for run in "${runs[@]}"; do cp "$run/studies/$study.json" "$results-$(basename "$run").json"; done
