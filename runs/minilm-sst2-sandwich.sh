#!/usr/bin/env bash
# MiniLM on all of SST-2 by the default recipe, its one stage for one epoch: the same teacher as runs/minilm-sst2.sh, and a
# quarter of its distillation. Needs DYNABERT_DATA. Results in docs/results/.
exec "$(dirname "$0")/minilm.sh" minilm-sst2-sandwich sst2 --recipe default "$@"
