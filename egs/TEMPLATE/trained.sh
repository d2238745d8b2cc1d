# shellcheck shell=bash
# The beginning of drivers that measure what a recipe has trained, and run in its folder: source this after setting the
# default of each further option. Stage 1 trains, with stages 1 to 3 of that recipe, unless that is done.
# shellcheck disable=SC2034,SC2154  # who sources this uses what it does not, and says what the last stage is

stage=1
asr=.
recipe=
work=
dev=dev
test_sets="test"
prepare_options=
train_options=
vocab_size=500
processes=2
# shellcheck source=tools/driver.sh
source "$(dirname "$0")/../../tools/driver.sh"

model=$asr/exp/default
data=$asr/data/default
exp=$work/exp
read -ra sets <<<"$test_sets"

if wanted 1 "train" && [[ ! -f $model/model.pt ]]; then
  ./run.sh --stop-stage 3 --work "$asr" --prepare-options "$prepare_options" --train-options "$train_options" \
    --vocab-size "$vocab_size" --processes "$processes"
fi
