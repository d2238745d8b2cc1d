#!/usr/bin/env bash
# Connected digits spoken by people (Free Spoken Digit Dataset), with one speaker held out.
# `./run.sh --help` lists stages and options.
set -euo pipefail
cd "$(dirname "$0")"
../../TEMPLATE/asr.sh --corpus fsdd --tokens bpe --vocab-size 36 --processes 2 --by speaker \
  --test-sets "test test_heldout" --stream-sets "test test_heldout" "$@"
