#!/usr/bin/env bash
# The main recipe: a streaming transducer on the embedded corpus, from nothing to a word error rate in 20 minutes.
# `./run.sh --help` lists stages and options; `--setting large` is more speech and a larger model.
set -euo pipefail
cd "$(dirname "$0")"
../../TEMPLATE/asr.sh --corpus mini --tokens bpe --vocab-size 500 --by domain --processes 2 \
  --test-sets "test_seen test_unseen" --stream-sets "test_seen test_unseen" "$@"
