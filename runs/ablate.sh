#!/usr/bin/env bash
# What each ingredient is worth, on four tasks, three seeds, and `default` against `paper` and `two-stage`:
#   runs/ablate.sh [options of dynabert ablate, for instance --budget 0.25 --seeds 1]
# By the recipe of the runs, the default one; what belongs to two stages, the teacher assistant say, by another one:
#   RESULTS=docs/results/two-stage- runs/ablate.sh --recipe two-stage --factors rewiring,distillation,assistant,teacher-width
# Variables and results: runs/study.sh. Not measured; at full budget days on one core.
exec "$(dirname "$0")/study.sh" ablate "$@"
