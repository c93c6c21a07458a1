#!/usr/bin/env bash
# The attention study of a finished run:  runs/attention.sh RUN [options of dynabert attention]
# For the published figure RUN was runs/four-42/sst2, made by TASKS=sst2 RUNS=runs/four-42 runs/four-tasks.sh.
# Writes docs/results/NAME-attention.json and .svg, NAME being that of the run folder. About two minutes on one busy core.
set -euo pipefail
run=$(realpath "${1:?give a run folder}")
shift
cd "$(dirname "$0")/.."
results=docs/results/$(basename "$run")-attention
mkdir -p docs/results
.venv/bin/dynabert attention "$run" --out "$results.json" --plot "$results.svg" "$@"
