#!/usr/bin/env bash
# The model of ../asr in every format that it is exported to, compared with itself: words, size and speed.
# `./run.sh --help` lists stages and options.
set -euo pipefail
cd "$(dirname "$0")/../asr" # the manifests name their audio from there
export ASRKIT_EXTRAS=executorch
../../TEMPLATE/export.sh --recipe ../export --work ../export --dev dev --test-sets "test_seen test_unseen" "$@"
