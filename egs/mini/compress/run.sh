#!/usr/bin/env bash
# The streaming encoder of ../asr, pruned with a scheme for each layer, as C that does nothing for zeros.
# `./run.sh --help` lists stages and options.
set -euo pipefail
cd "$(dirname "$0")/../asr" # the manifests name their audio from there
../../TEMPLATE/compress.sh --recipe ../compress --work ../compress --dev dev --test-sets "test_seen test_unseen" \
  --percents 80 "$@"
