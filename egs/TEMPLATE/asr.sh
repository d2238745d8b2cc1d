#!/usr/bin/env bash
# Train a transducer on a corpus and measure it. The run.sh of each recipe calls this with its choices; every option
# can be given to run.sh too.
#
# Stages
#   1  prepare the corpus                     data/
#   2  make the tokens                        data/lang
#   3  train                                  exp/<experiment>
#   4  decode the test sets                   exp/<experiment>/<set>, exp/<experiment>/<set>_streaming
#   5  score                                  score.json, alignments.txt beside the hypotheses
#   6  pictures and RESULTS.md
#
# Options
#   --stage N, --stop-stage N  first and last stage (1, 6); a corpus or a training that is done is left as it is
#   --setting NAME             folder of conf/ with train.yaml and prepare.options ("default")
#   --experiment NAME          experiment directory below exp/ (the setting)
#   --work DIR                 where data/, exp/, pictures/ and RESULTS.md go (the recipe's own folder)
#   --processes N              training processes on this machine (1); for more machines see tools/slurm
#   --beam N                   hypotheses kept in decoding (4)
#   --corpus NAME              what `asrkit data prepare` calls it
#   --test-sets "A B"          sets to decode, with --stream-sets "A" those decoded a second time as a stream
#   --tokens bpe|char|phone    kind of tokens, with --vocab-size N for bpe
#   --by ATTRIBUTE             break the word error rate down by this attribute of the utterances (speaker)
#   --prepare-options "…"      more options for `asrkit data prepare`, as "--hours 20"
#   --train-options "…"        more options for `asrkit train`, as "--training.epochs 3"
set -euo pipefail

stage=1
stop_stage=6
setting=default
experiment=
work=.
processes=1
beam=4
corpus=
test_sets="test"
stream_sets=
tokens=bpe
vocab_size=500
by=speaker
prepare_options=
train_options=
# shellcheck source=tools/driver.sh
source "$(dirname "$0")/../../tools/driver.sh"

experiment=${experiment:-$setting}
exp=$work/exp/$experiment
data=$work/data/$setting
if [[ ! -f conf/$setting/train.yaml ]]; then
  echo "$0: --setting: no file $PWD/conf/$setting/train.yaml" >&2
  exit 1
fi
read -ra sets <<<"$test_sets"
read -ra streamed <<<"$stream_sets"
sets=("${sets[@]/#/$data/}")
streamed=("${streamed[@]/#/$data/}")
read -ra prepare_options <<<"$(tr '\n' ' ' <"conf/$setting/prepare.options") $prepare_options"
read -ra train_options <<<"$train_options"

if wanted 1 "prepare the corpus $corpus"; then
  asrkit data prepare "$corpus" "$data" "${prepare_options[@]}"
  asrkit data describe "$data/train.jsonl.gz" "${sets[@]/%/.jsonl.gz}"
fi

if wanted 2 "tokens"; then
  asrkit lang --manifest "$data/train.jsonl.gz" --type "$tokens" --vocab-size "$vocab_size" --out "$data/lang"
fi

if wanted 3 "train $exp"; then
  launch=(asrkit)
  if ((processes > 1)); then
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$(($(nproc) > processes ? $(nproc) / processes : 1))}
    launch=(torchrun --standalone --nproc-per-node "$processes" -m asrkit.cli.main)
  fi
  "${launch[@]}" train --conf "conf/$setting/train.yaml" --train "$data/train.jsonl.gz" \
    --valid "$data/dev.jsonl.gz" --lang "$data/lang" --out "$exp" "${train_options[@]}"
fi

decode() { # decode SET NAME OPTIONS...: on one core, which the real-time factor is for
  asrkit decode "$1" --model "$exp" --out "$exp/$2" --beam "$beam" --threads 1 "${@:3}"
}

if wanted 4 "decode"; then
  for set in "${sets[@]}"; do decode "$set.jsonl.gz" "$(basename "$set")"; done
  for set in "${streamed[@]}"; do decode "$set.jsonl.gz" "$(basename "$set")_streaming" --streaming; done
fi

score() { # score SET NAME OPTIONS...
  asrkit score --refs "$1.jsonl.gz" --hyps "$exp/$2/nbest.jsonl" --out "$exp/$2" --by "$by" "${@:3}"
}

if wanted 5 "score"; then
  for set in "${sets[@]}"; do score "$set" "$(basename "$set")"; done
  for set in "${streamed[@]}"; do
    score "$set" "$(basename "$set")_streaming" --baseline "$exp/$(basename "$set")/nbest.jsonl"
  done
fi

if wanted 6 "pictures and RESULTS.md"; then
  asrkit plot curve --exp "$exp" --out "$work/pictures/curve.png"
  asrkit plot alignment --cuts "${sets[0]}.jsonl.gz" --hyps "$exp/$(basename "${sets[0]}")/nbest.jsonl" \
    --out "$work/pictures/alignment.png"
  asrkit results . --exp "$exp" --out "$work/RESULTS.md"
fi
