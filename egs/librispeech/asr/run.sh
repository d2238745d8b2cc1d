#!/usr/bin/env bash
# LibriSpeech: `--setting full` trains on 960 h (`--processes` and tools/slurm for more than one GPU), the default runs
# every stage on a part of dev-clean with 20 speakers. `./run.sh --help` lists stages and options.
set -euo pipefail
cd "$(dirname "$0")"
../../TEMPLATE/asr.sh --corpus librispeech --processes 2 --tokens bpe --vocab-size 500 --by speaker \
  --test-sets "test" --stream-sets "test" "$@"
