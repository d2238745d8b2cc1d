#!/usr/bin/env bash
# The recipe ../asr with the full-sum and with the pruned transducer loss, several seeds each, half as long.
#
# Options
#   --stage N, --stop-stage N  stages of ../asr (1, 6)
#   --losses "full pruned simple"   the full sum; pruned by CTC; pruned by a joiner that only adds logits
#   --seeds "0 1 2"            seeds of weights, order and augmentation
#   --work DIR                 where data/, exp/ and RESULTS.md go (this folder)
#   --processes N              training processes (2)
#   --prepare-options "…", --train-options "…", --vocab-size N   as in ../asr
set -euo pipefail

stage=1
stop_stage=6
losses="full pruned simple"
seeds="0 1 2"
work=
processes=2
prepare_options=
train_options="--training.epochs 2"
vocab_size=500
# shellcheck source=tools/parse_options.sh
source "$(dirname "$0")/../../../tools/parse_options.sh"
here=$(cd "$(dirname "$0")" && pwd)
work=${work:-../losses} # seen from ../asr
cd "$here/../asr"

declare -A loss_options=([full]=full [pruned]=pruned [simple]="pruned --model.prune_by simple")
for seed in $seeds; do # the losses take turns, so that a machine that slows down slows all
  for loss in $losses; do
    ../../TEMPLATE/asr.sh --corpus mini --vocab-size "$vocab_size" --by domain --work "$work" \
      --test-sets "test_seen test_unseen" --experiment "$loss-$seed" --processes "$processes" \
      --stage "$stage" --stop-stage "$((stop_stage < 5 ? stop_stage : 5))" --prepare-options "$prepare_options" \
      --train-options "$train_options --training.seed $seed --model.loss ${loss_options[$loss]}"
  done
done
# shellcheck source=tools/setup.sh
source ../../../tools/setup.sh
((stop_stage < 6)) || asrkit results "$here" --exp "$work/exp" --out "$work/RESULTS.md"
