#!/usr/bin/env bash
# Make the streaming encoder of a trained model faster: map a pruning scheme to each layer, train it to sparsity, compile
# it, and measure words and time. Runs in the folder of the recipe that trains it. The run.sh of each recipe calls this
# with its choices; every option can be given to run.sh too.
#
# Stages
#   1  train, with stages 1 to 3 of that recipe, unless it is done
#   2  measure how long layers take on this machine     exp/latency.jsonl
#   3  map schemes to layers                            exp/mapping.yaml
#   4  prune, and fine-tune                             exp/pruned-<percent>, exp/sparse-<percent>
#   5  decode the test sets as streams, and score       exp/<model>/<set>
#   6  compile and time                                 exp/<model>/compress.json; pictures/
#   7  export to C, which transcribes as well           exp/export
#   8  RESULTS.md
#
# Options
#   --stage N, --stop-stage N  first and last stage (1, 8); what is trained is left as it is
#   --asr DIR                  where that recipe worked: exp/default, data/default (its own folder)
#   --recipe DIR               where results.yaml and conf/ are
#   --work DIR                 where exp/, pictures/ and RESULTS.md go (the recipe's own folder)
#   --dev SET, --test-sets "A B"
#   --percents "N M"           parts of the encoder's weights that go
#   --speed-up X               what the mapping aims at, as predicted
#   --table FILE               latency table, instead of measuring one
#   --beam N                   hypotheses kept in decoding (4)
#   --prune-options "…"        more options for `asrkit compress prune` and `finetune`, as "--training.epochs 1"
#   --prepare-options "…", --train-options "…", --vocab-size N, --processes N   for the training
set -euo pipefail

stop_stage=8
percents=80
speed_up=4
table=
beam=4
prune_options=
# shellcheck source=egs/TEMPLATE/trained.sh
source "$(dirname "$0")/trained.sh"

table=${table:-$exp/latency.jsonl}
read -ra percents <<<"$percents"
read -ra prune_options <<<"$prune_options"
speech=(--train "$data/train.jsonl.gz" --valid "$data/$dev.jsonl.gz")
launch=(asrkit)
((processes == 1)) || launch=(torchrun --standalone --nproc-per-node "$processes" -m asrkit.cli.main)

if wanted 2 "latency table" && [[ ! -f $table ]]; then asrkit compress latency-table --out "$table"; fi

if wanted 3 "map schemes"; then
  asrkit compress map --model "$model" --table "$table" --speed-up "$speed_up" --out "$exp/mapping.yaml"
fi

if wanted 4 "prune and fine-tune"; then
  for percent in "${percents[@]}"; do
    [[ -f $exp/sparse-$percent/finetuning/train.json ]] && continue
    "${launch[@]}" compress prune --model "$model" --mapping "$exp/mapping.yaml" --conf "$recipe/conf/prune.yaml" \
      --pruning.ratio "0.$percent" --out "$exp/pruned-$percent" "${speech[@]}" "${prune_options[@]}"
    "${launch[@]}" compress finetune --model "$exp/pruned-$percent" --conf "$recipe/conf/finetune.yaml" \
      --out "$exp/sparse-$percent" "${speech[@]}" "${prune_options[@]}"
  done
fi

dense=$exp/dense # its figures stay here, not in the recipe that trained it
mkdir -p "$dense"
for file in config.yaml model.pt lang; do ln -sfn "$(realpath "$model")/$file" "$dense/$file"; done
models=("$dense" "${percents[@]/#/$exp/sparse-}")

if wanted 5 "decode and score"; then
  for one in "${models[@]}"; do
    for set in "${sets[@]}"; do
      asrkit decode "$data/$set.jsonl.gz" --model "$one" --out "$one/$set" --beam "$beam" --streaming
      baseline=()
      [[ $one == "$dense" ]] || baseline=(--baseline "$dense/$set/nbest.jsonl")
      asrkit score --refs "$data/$set.jsonl.gz" --hyps "$one/$set/nbest.jsonl" --out "$one/$set" "${baseline[@]}"
    done
  done
fi

if wanted 6 "compile and time"; then asrkit compress report "${models[@]}" --out "$work/pictures"; fi

if wanted 7 "export"; then
  asrkit export --model "${models[-1]}" --format c --out "$exp/export" --check "$data/$dev.jsonl.gz"
  asrkit bench --model "${models[@]}" --json "$exp/export/bench.json"
fi

if wanted 8 "RESULTS.md"; then asrkit results "$recipe" --exp "$exp" --out "$work/RESULTS.md"; fi
