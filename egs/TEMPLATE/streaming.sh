#!/usr/bin/env bash
# Measure a trained model as a stream: word error rate against latency at several chunk sizes. Runs in the folder of the
# recipe that trains it. The run.sh of each recipe calls this with its choices; every option can be given to run.sh too.
#
# Stages
#   1  train, with stages 1 to 3 of that recipe, unless it is done
#   2  choose each chunk size's lookahead on dev: none, a quarter or half of it     exp/<dev>/<chunk>-<lookahead>
#   3  decode the test sets whole and as streams                                    exp/<set>/whole, exp/<set>/<chunk>
#      the first one also as exact streams, and whole with attention masked alike   exp/<set>/<chunk>-0, <chunk>-masked
#   4  score
#   5  picture and RESULTS.md
#
# Options
#   --stage N, --stop-stage N  first and last stage (1, 5)
#   --asr DIR                  where that recipe worked: exp/default, data/default (its own folder)
#   --recipe DIR               where results.yaml is
#   --work DIR                 where exp/, pictures/ and RESULTS.md go (the recipe's own folder)
#   --dev SET, --test-sets "A B"
#   --chunk-sizes "8 16"       in encoder frames
#   --beam N                   hypotheses kept in decoding (4)
#   --prepare-options "…", --train-options "…", --vocab-size N, --processes N   for the training
set -euo pipefail

stop_stage=5
chunk_sizes="8 16 32"
beam=4
# shellcheck source=egs/TEMPLATE/trained.sh
source "$(dirname "$0")/trained.sh"

read -ra chunks <<<"$chunk_sizes"
first=${sets[0]}

decode() { # decode SET NAME OPTIONS...: on one core, which the real-time factor is for
  asrkit decode "$data/$1.jsonl.gz" --model "$model" --out "$exp/$1/$2" --beam "$beam" --threads 1 "${@:3}"
}

stream() { # stream SET NAME CHUNK LOOKAHEAD
  decode "$1" "$2" --streaming --chunk-size "$3" --lookahead "$4"
}

score() { # score SET NAME OPTIONS...
  asrkit score --refs "$data/$1.jsonl.gz" --hyps "$exp/$1/$2/nbest.jsonl" --out "$exp/$1/$2" "${@:3}"
}

if wanted 2 "choose the lookahead on $dev"; then
  mkdir -p "$exp/$dev"
  for chunk in "${chunks[@]}"; do
    for lookahead in 0 $((chunk / 4)) $((chunk / 2)); do
      stream "$dev" "$chunk-$lookahead" "$chunk" "$lookahead"
      echo "$lookahead $(score "$dev" "$chunk-$lookahead" | head -n 1)"
    done | sort -k 3,3n -k 1,1n >"$exp/$dev/$chunk" # the best first
    sed "s/^/chunk size $chunk, lookahead /" "$exp/$dev/$chunk"
  done
fi

if wanted 3 "decode"; then
  for set in "${sets[@]}"; do
    decode "$set" whole
    for chunk in "${chunks[@]}"; do
      read -r lookahead _ <"$exp/$dev/$chunk"
      stream "$set" "$chunk" "$chunk" "$lookahead"
    done
  done
  for chunk in "${chunks[@]}"; do
    stream "$first" "$chunk-0" "$chunk" 0
    python3 "$root/egs/TEMPLATE/masked.py" "$model" "$data/$first.jsonl.gz" "$chunk" "$beam" \
      "$exp/$first/$chunk-masked/text"
  done
fi

if wanted 4 "score"; then
  for set in "${sets[@]}"; do
    score "$set" whole
    for chunk in "${chunks[@]}"; do score "$set" "$chunk" --baseline "$exp/$set/whole/nbest.jsonl"; done
  done
  for chunk in "${chunks[@]}"; do # against masked attention, not against what was said: no error means equal words
    asrkit score --refs "$exp/$first/$chunk-masked/text" --hyps "$exp/$first/$chunk-0/nbest.jsonl" \
      --out "$exp/$first/$chunk-0"
  done
fi

if wanted 5 "picture and RESULTS.md"; then
  folders=()
  for set in "${sets[@]}"; do
    folders+=("$exp/$set/whole" "${chunks[@]/#/$exp/$set/}")
  done
  asrkit plot latency "${folders[@]}" --out "$work/pictures/latency.png"
  asrkit results "$recipe" --exp "$exp" --out "$work/RESULTS.md"
fi
