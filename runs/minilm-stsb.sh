#!/usr/bin/env bash
# MiniLM on STS-B, the two-stage recipe, one epoch a stage. Needs DYNABERT_DATA. Results in docs/results/.
exec "$(dirname "$0")/minilm.sh" minilm-stsb stsb --teacher-epochs 3 "$@"
