#!/usr/bin/env bash
# Train image classifiers, map a pruning scheme to each layer, train them to sparsity, compile them, and measure all of it.
# The run.sh of each recipe calls this with its choices; every option can be given to run.sh too.
#
# Stages
#   1  train the dense networks                        exp/<network>/<seed>/dense
#   2  measure how long layers take on this machine    exp/latency.jsonl
#   3  map schemes to layers                           exp/<network>/<seed>/<mapping>.yaml
#   4  prune, and fine-tune                            exp/<network>/<seed>/<mapping>-<percent pruned>
#   5  the same by the other ways to train             exp/<network>/<seed>/<method>-<percent pruned>
#      (conf/<method>.yaml, where there is one, is for the fine-tuning of that method alone)
#   6  test, compile and time                          score.json and compress.json in each; pictures/
#   7  export the first mapping of the first network   exp/<network>/export
#   8  RESULTS.md
#
# Options
#   --stage N, --stop-stage N  first and last stage (1, 8); what is trained is left as it is
#   --images NAME              digits, mnist or cifar10
#   --networks "A B"           vgg16, resnet32, mobilenet
#   --mappings "A B"           rule, search, or a scheme as punched_4x1, pattern, filter
#   --percents "N M"           parts of the weights that go
#   --more-mappings "A B"      mappings that are pruned by the first of these parts only, to compare block sizes for instance
#   --methods "A B"            ways to train to sparsity that are compared: group_lasso, admm, magnitude
#   --method-percents "N M"    the parts of the weights that go there, with the first mapping
#   --speed-up X               what `rule` and `search` aim at, as predicted
#   --seeds "0 1 2"
#   --table FILE               latency table, instead of measuring one
#   --work DIR                 where exp/, pictures/ and RESULTS.md go (the recipe's own folder)
#   --processes N              experiments that are trained at the same time (1)
#   --train-options "…"        more options for each training, as "--training.epochs 1"
#   --dense-options "…", --prune-options "…", --search-options "…"   more options for `asrkit vision train`,
#                              `asrkit compress prune` and `asrkit compress map --search`
set -euo pipefail

stage=1
stop_stage=8
images=digits
networks=vgg16
mappings="rule pattern"
percents="80 90"
more_mappings=
methods="group_lasso admm magnitude"
method_percents=90
speed_up=4
seeds=0
table=
work=.
processes=1
train_options=
dense_options=
prune_options=
search_options=
# shellcheck source=tools/driver.sh
source "$(dirname "$0")/../../tools/driver.sh"

at_once=$processes
exp=$work/exp
table=${table:-$exp/latency.jsonl}
for name in networks mappings percents more_mappings methods method_percents seeds train_options dense_options prune_options search_options; do
  read -ra "${name?}" <<<"${!name}"
done

each() { # each FUNCTION: call it with every network and seed, as many at a time as there are processes
  local network seed
  for network in "${networks[@]}"; do
    for seed in "${seeds[@]}"; do start "$1" "$network" "$seed" "$exp/$network/$seed"; done
  done
  finish
}

train_dense() { # NETWORK SEED FOLDER
  [[ -f $3/dense/train.json ]] ||
    asrkit vision train --conf conf/train.yaml "conf/$1.yaml" --images "$images" --training.seed "$2" --out "$3/dense" \
      "${train_options[@]}" "${dense_options[@]}"
}

make_mappings() { # NETWORK SEED FOLDER
  local mapping
  local aim=(--table "$table" --speed-up "$speed_up")
  for mapping in "${mappings[@]}" "${more_mappings[@]}"; do
    case $mapping in
      rule) set -- "${@:1:3}" "${aim[@]}" ;;
      search) set -- "${@:1:3}" "${aim[@]}" --search --conf conf/search.yaml "${search_options[@]}" ;;
      *) set -- "${@:1:3}" --scheme "${mapping/_/ }" ;;
    esac
    [[ -f $3/$mapping.yaml ]] || asrkit compress map --model "$3/dense" --out "$3/$mapping.yaml" "${@:4}"
  done
}

prune() { # SEED FOLDER NAME MAPPING PERCENT METHOD: prune and fine-tune
  local seeded=(--training.seed "$1" "${train_options[@]}") conf=(conf/finetune.yaml)
  [[ -f $2/$3/finetuning/train.json ]] && return
  [[ ! -f conf/$6.yaml ]] || conf+=("conf/$6.yaml")
  asrkit compress prune --model "$2/dense" --mapping "$2/$4.yaml" --conf conf/prune.yaml --pruning.method "$6" \
    --pruning.ratio "0.$5" --out "$2/pruned/$3" "${seeded[@]}" "${prune_options[@]}"
  asrkit compress finetune --model "$2/pruned/$3" --conf "${conf[@]}" --out "$2/$3" "${seeded[@]}"
}

names_of() { # names_of "A B" "N M": A-N A-M B-N B-M
  local name percent
  for name in $1; do
    for percent in $2; do echo "$name-$percent"; done
  done
}

prune_mappings() { # NETWORK SEED FOLDER
  local name
  for name in "${mapped[@]}"; do prune "$2" "$3" "$name" "${name%-*}" "${name##*-}" reweighted; done
}

prune_methods() { # NETWORK SEED FOLDER
  local name
  for name in "${trained[@]}"; do prune "$2" "$3" "$name" "${mappings[0]}" "${name##*-}" "${name%-*}"; done
}

measure() { # NETWORK SEED FOLDER
  local models=("$3/dense" "${mapped[@]/#/$3/}" "${trained[@]/#/$3/}") model
  for model in "${models[@]}"; do asrkit vision test --model "$model"; done
  asrkit compress report "${models[@]}" --out "$work/pictures/$1-$2"
}

read -rd '' -a mapped < <(names_of "${mappings[*]}" "${percents[*]}" && names_of "${more_mappings[*]}" "${percents[0]}") || true
read -rd '' -a trained < <(names_of "${methods[*]}" "${method_percents[*]}") || true

if wanted 1 "train $images"; then each train_dense; fi

if wanted 2 "latency table"; then
  [[ -f $table ]] || asrkit compress latency-table --out "$table"
fi

if wanted 3 "map schemes"; then each make_mappings; fi

if wanted 4 "prune and fine-tune"; then each prune_mappings; fi

if wanted 5 "other ways to train"; then each prune_methods; fi

if wanted 6 "test, compile and time"; then
  processes=1 # what else runs would be measured as well
  each measure
fi

if wanted 7 "export"; then
  best=$exp/${networks[0]}/${seeds[0]}/${mapped[0]} export=$exp/${networks[0]}/export
  for format in c onnx executorch; do asrkit export --model "$best" --format $format --out "$export/$format"; done
  asrkit bench --model "$best" --json "$export/bench.json"
fi

if wanted 8 "RESULTS.md"; then asrkit results . --exp "$exp" --out "$work/RESULTS.md"; fi
