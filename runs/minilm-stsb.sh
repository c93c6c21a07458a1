#!/usr/bin/env bash
# MiniLM on STS-B, the default recipe. Needs DYNABERT_DATA. Results in docs/results/.
exec "$(dirname "$0")/minilm.sh" stsb --epochs 3 --teacher-epochs 3 "$@"
