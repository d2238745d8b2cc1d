#!/usr/bin/env bash
# Export a trained model to every format, and compare each export with it. Runs in the folder of the recipe that trains
# it. The run.sh of each recipe calls this with its choices; every option can be given to run.sh too.
#
# Stages
#   1  train, with stages 1 to 3 of that recipe, unless it is done
#   2  export, and let model and export transcribe the dev and test sets    exp/<export>
#   3  RESULTS.md
#
# Options
#   --stage N, --stop-stage N  first and last stage (1, 3)
#   --asr DIR                  where that recipe worked: exp/default, data/default (its own folder)
#   --recipe DIR               where results.yaml is
#   --work DIR                 where exp/ and RESULTS.md go (the recipe's own folder)
#   --dev SET, --test-sets "A B"
#   --prepare-options "…", --train-options "…", --vocab-size N, --processes N   for the training
set -euo pipefail

stop_stage=3
# shellcheck source=egs/TEMPLATE/trained.sh
source "$(dirname "$0")/trained.sh"

checked=("$data/$dev.jsonl.gz")
for set in "${sets[@]}"; do checked+=("$data/$set.jsonl.gz"); done

export_as() { # export_as NAME OPTIONS...: by force, for what would be refused is to be seen as well
  asrkit export --model "$model" --out "$exp/$1" --check "${checked[@]}" --force "${@:2}"
}

if wanted 2 "export and compare"; then
  dynamic=(--format onnx-int8)
  static=(--format onnx-int8 --calibrate "$data/train.jsonl.gz")
  export_as onnx
  export_as dynamic "${dynamic[@]}"
  export_as static "${static[@]}"
  export_as onnx-streaming --streaming
  export_as dynamic-streaming --streaming "${dynamic[@]}"
  export_as static-streaming --streaming "${static[@]}"
  export_as executorch --format executorch
  export_as c --format c
fi

if wanted 3 "RESULTS.md"; then
  asrkit results "$recipe" --exp "$exp" --out "$work/RESULTS.md"
fi
