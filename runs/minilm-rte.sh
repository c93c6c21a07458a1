#!/usr/bin/env bash
# MiniLM on RTE, the default recipe. 277 validation rows: one row is 0.36 points. Needs DYNABERT_DATA. Results in docs/results/.
exec "$(dirname "$0")/minilm.sh" rte --epochs 3 --teacher-epochs 3 "$@"
