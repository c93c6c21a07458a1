#!/usr/bin/env bash
# MiniLM (6 layers, 12 heads, 384 wide) on all of SST-2, one epoch a stage, the two-stage recipe.
# Needs DYNABERT_DATA, a folder with sst2/train.parquet and sst2/validation.parquet. An hour and a half on one busy core.
# Expect: teacher 88, (0.5, 1.0) within 1 point of it, (0.25, 0.5) within 2; results in docs/results/.
exec "$(dirname "$0")/minilm.sh" minilm-sst2 sst2 "$@"
