#!/usr/bin/env bash
# DynaBERT beside LayerDrop, DeeBERT, FastBERT, the first layers and each size alone, on four tasks, three seeds:
#   runs/compare.sh [options of dynabert compare]
# Variables and results: runs/study.sh. Estimated from TREC with one seed and rate: days on one core.
exec "$(dirname "$0")/study.sh" compare --seeds 3 --lrs 5e-5,1e-4,2e-4 "$@"
