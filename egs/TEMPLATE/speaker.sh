#!/usr/bin/env bash
# Train a speaker embedder and its PLDA, and measure them on speakers that are in no training. The run.sh of each recipe
# calls this with its choices; every option can be given to run.sh too.
#
# Stages
#   1  prepare the corpora                             data/
#   2  train                                           exp/default
#   3  PLDA of windows in random rooms and noises      exp/default/plda.npz
#   4  verify held-out speakers in such rooms          exp/default/test
#   5  the same without room and noise                 exp/default/test_clean
#   6  the same with another embedder                  exp/<peer>
#   7  RESULTS.md
#
# Options
#   --stage N, --stop-stage N  first and last stage (1, 7); a corpus or a training that is done is left as it is
#   --corpus NAME              what `asrkit data prepare` calls it; makes train, dev and test
#   --data-dirs "A B"          Kaldi data directories with further training speakers (speechocean762_subset, if there)
#   --peer NAME                embedder to compare with, an ONNX file or resemblyzer (its package has to be installed)
#   --work DIR                 where data/, exp/ and RESULTS.md go (the recipe's own folder)
#   --processes N              training processes (1)
#   --prepare-options "…"      more options for `asrkit data prepare`
#   --train-options "…"        more options for `asrkit speaker train`, as "--training.epochs 3"
#   --window-options "…"       more options for `asrkit speaker plda` and `verify`, as "--windows.number 10"
set -euo pipefail

stage=1
stop_stage=7
corpus=
more=${ASRKIT_CORPORA:-/nonexistent}/speechocean762_subset
data_dirs=$([[ -d $more ]] && echo "$more/train $more/test" || true)
peer=resemblyzer
work=.
processes=1
prepare_options=
train_options=
window_options=
# shellcheck source=tools/driver.sh
source "$(dirname "$0")/../../tools/driver.sh"

data=$work/data/default
exp=$work/exp/default
read -ra prepare_options <<<"$prepare_options"
read -ra train_options <<<"$train_options"
read -ra window_options <<<"$window_options"
read -ra data_dirs <<<"$data_dirs"
train=("$data/train.jsonl.gz")
for folder in "${data_dirs[@]}"; do train+=("$data/more/$(basename "$folder").jsonl.gz"); done

plda() { # plda MODEL FILE
  asrkit speaker plda --model "$1" --cuts "${train[@]}" --out "$2" "${window_options[@]}"
}

verify() { # verify MODEL PLDA FOLDER OPTIONS...
  asrkit speaker verify --model "$1" --plda "$2" --cuts "$data/test.jsonl.gz" --out "$3" "${window_options[@]}" "${@:4}"
}

if wanted 1 "prepare the corpora"; then
  asrkit data prepare "$corpus" "$data" "${prepare_options[@]}"
  if ((${#data_dirs[@]})); then asrkit data prepare kaldi "$data/more" --data-dirs "${data_dirs[@]}"; fi
fi

if wanted 2 "train $exp"; then
  launch=(asrkit)
  ((processes == 1)) || launch=(torchrun --standalone --nproc-per-node "$processes" -m asrkit.cli.main)
  "${launch[@]}" speaker train --conf conf/train.yaml --train "${train[@]}" --valid "$data/dev.jsonl.gz" \
    --out "$exp" "${train_options[@]}"
fi

if wanted 3 "PLDA"; then plda "$exp" "$exp/plda.npz"; fi

if wanted 4 "verify"; then verify "$exp" "$exp/plda.npz" "$exp/test"; fi

if wanted 5 "verify clean speech"; then verify "$exp" "$exp/plda.npz" "$exp/test_clean" --windows.clean true; fi

if wanted 6 "compare with $peer"; then
  other=$work/exp/$(basename "$peer" .onnx)
  plda "$peer" "$other/plda.npz"
  verify "$peer" "$other/plda.npz" "$other/test"
  verify "$peer" "$other/plda.npz" "$other/test_clean" --windows.clean true
fi

if wanted 7 "RESULTS.md"; then asrkit results . --exp "$work/exp" --out "$work/RESULTS.md"; fi
