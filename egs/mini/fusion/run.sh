#!/usr/bin/env bash
# Language model fusion: a transducer trained on two domains of the embedded corpus recognises three others, whose text
# is known. `./run.sh --help` lists stages and options.
set -euo pipefail
cd "$(dirname "$0")"
../../TEMPLATE/fusion.sh --corpus mini --tokens bpe --vocab-size 250 --processes 2 --test-set test_seen \
  --targets "dates_amounts meeting names_addresses" --phrases conf/names.txt "$@"
