#!/usr/bin/env bash
# One model, many latencies: the model of ../asr as a stream at four chunk sizes, and how soon each word is known.
# `./run.sh --help` lists stages and options.
set -euo pipefail
cd "$(dirname "$0")/../asr" # the manifests name their audio from there
../../TEMPLATE/streaming.sh --recipe ../streaming --work ../streaming --dev dev --test-sets "test_seen test_unseen" \
  --chunk-sizes "8 16 32 64" "$@"
