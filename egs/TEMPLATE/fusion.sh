#!/usr/bin/env bash
# Recognise domains of which there is text but no speech to train on: train on other domains, fuse language models in
# the search with weights tuned on each target's dev set, and measure each way. The run.sh of each recipe calls this
# with its choices; every option can be given to run.sh too.
#
# Stages
#   1  prepare the source corpus              data/<setting>            (stages 1 to 3 are those of asr.sh)
#   2  make the tokens                        data/<setting>/lang
#   3  train                                  exp/<experiment>
#   4  prepare the target corpora             data/<target>
#   5  language models of source and targets  exp/<experiment>/lm
#   6  tune the weights of each method on each target's dev set
#   7  decode the targets' test sets          exp/<experiment>/<target>/<method>
#   8  score: shallow fusion and phrases against a reward for length alone, the others against shallow fusion
#   9  RESULTS.md
#
# Options
#   --stage N, --stop-stage N  first and last stage (1, 9)
#   --setting NAME             folder of conf/ with train.yaml, prepare.options and target.options ("default")
#   --experiment NAME          experiment directory below exp/ (the setting)
#   --work DIR                 where data/, exp/, pictures/ and RESULTS.md go (the recipe's own folder)
#   --processes N              training processes on this machine (1)
#   --corpus NAME              what `asrkit data prepare` calls it
#   --targets "A B"            target domains: data/A needs dev.jsonl.gz, the test set and text/A.txt
#   --test-set NAME            the targets' test set ("test")
#   --phrases FILE             phrases for contextual biasing (without a language model) in the last target
#   --tokens bpe|char|phone    kind of tokens, with --vocab-size N for bpe
#   --beam N                   hypotheses kept in decoding (4)
#   --prepare-options "…"      more options for `asrkit data prepare` of the source
#   --target-options "…"       more options for `asrkit data prepare` of the targets
#   --train-options "…"        more options for `asrkit train`
#   --lm-options "…"           more options for `asrkit lm train` of the neural language models
set -euo pipefail

stage=1
stop_stage=9
setting=default
experiment=
work=.
processes=1
corpus=
targets=
test_set="test"
phrases=
tokens=bpe
vocab_size=500
beam=4
prepare_options=
target_options=
train_options=
lm_options=
# shellcheck source=tools/driver.sh
source "$(dirname "$0")/../../tools/driver.sh"

experiment=${experiment:-$setting}
exp=$work/exp/$experiment
source_data=$work/data/$setting
read -ra targets <<<"$targets"
read -ra target_options <<<"$(tr '\n' ' ' <"conf/$setting/target.options") $target_options"
read -ra lm_options <<<"$lm_options"

if ((stage <= 3)); then
  "$root/egs/TEMPLATE/asr.sh" --stage "$stage" --stop-stage "$((stop_stage < 3 ? stop_stage : 3))" \
    --setting "$setting" --experiment "$experiment" --work "$work" --processes "$processes" --corpus "$corpus" \
    --tokens "$tokens" --vocab-size "$vocab_size" --test-sets "$test_set" --prepare-options "$prepare_options" \
    --train-options "$train_options"
fi

if wanted 4 "prepare the target corpora"; then
  for target in "${targets[@]}"; do
    asrkit data prepare "$corpus" "$work/data/$target" --domains "$target" "${target_options[@]}"
  done
fi

train_lm() { # train_lm NAME TYPE OPTIONS...
  asrkit lm train --lang "$source_data/lang" --out "$exp/lm/$1" --type "$2" "${@:3}"
}

if wanted 5 "language models"; then
  train_lm source lstm --conf "conf/$setting/lm.yaml" --text "$source_data/train.jsonl.gz" \
    --valid "$source_data/dev.jsonl.gz" "${lm_options[@]}"
  train_lm source_bigram ngram --order 2 --text "$source_data/train.jsonl.gz"
  for target in "${targets[@]}"; do
    train_lm "$target" lstm --conf "conf/$setting/lm.yaml" --text "$work/data/$target/text/$target.txt" \
      --valid "$work/data/$target/dev.jsonl.gz" "${lm_options[@]}"
    asrkit lm perplexity --lm "$exp/lm/source" --text "$work/data/$target/dev.jsonl.gz"
    asrkit lm perplexity --lm "$exp/lm/$target" --text "$work/data/$target/dev.jsonl.gz"
    asrkit lm perplexity --model "$exp" --text "$work/data/$target/dev.jsonl.gz"
  done
fi

methods=(length shallow_fusion density_ratio lodr ilme)
declare -A weights=([length]="length" [shallow_fusion]="target length" [density_ratio]="target source length"
  [lodr]="target source_bigram length" [ilme]="target internal_lm length" [context]="length")

methods_of() { # methods_of TARGET
  echo "${methods[@]}"
  [[ -z $phrases || $1 != "${targets[-1]}" ]] || echo context
}

start_of() { # start_of METHOD TARGET: the fusion that tuning starts from
  [[ $1 == length || $1 == context ]] || printf 'lms:\n  target: {path: %s, weight: 0.4}\n' "$exp/lm/$2"
  case $1 in
    length) printf 'length: 0.2\n' ;;
    context) printf 'context: {phrases: %s}\n' "$phrases" ;;
    density_ratio) printf '  source: {path: %s, weight: -0.2}\n' "$exp/lm/source" ;;
    lodr) printf '  source_bigram: {path: %s, weight: -0.2}\n' "$exp/lm/source_bigram" ;;
    ilme) printf 'internal_lm: -0.2\n' ;;
  esac
}

if wanted 6 "tune the weights on dev"; then
  for target in "${targets[@]}"; do
    for method in $(methods_of "$target"); do
      mkdir -p "$exp/$target/$method"
      start_of "$method" "$target" >"$exp/$target/$method/start.yaml"
      read -ra names <<<"${weights[$method]}"
      asrkit tune decode --model "$exp" --data "$work/data/$target/dev.jsonl.gz" --beam "$beam" \
        --fusion "$exp/$target/$method/start.yaml" --weights "${names[@]}" --out "$exp/$target/$method/tuned.yaml"
    done
  done
fi

decode() { # decode TARGET NAME OPTIONS...: on one core, which the real-time factor is for
  asrkit decode "$work/data/$1/$test_set.jsonl.gz" --model "$exp" --out "$exp/$1/$2" --beam "$beam" --threads 1 \
    "${@:3}"
}

if wanted 7 "decode"; then
  for target in "${targets[@]}"; do
    decode "$target" none
    for method in $(methods_of "$target"); do
      decode "$target" "$method" --fusion "$exp/$target/$method/tuned.yaml"
    done
  done
fi

score() { # score TARGET NAME OPTIONS...
  asrkit score --refs "$work/data/$1/$test_set.jsonl.gz" --hyps "$exp/$1/$2/nbest.jsonl" --out "$exp/$1/$2" "${@:3}"
}

if wanted 8 "score"; then
  for target in "${targets[@]}"; do
    options=()
    [[ -z $phrases || $target != "${targets[-1]}" ]] || options=(--phrases "$phrases")
    score "$target" none "${options[@]}"
    for method in $(methods_of "$target"); do
      case $method in
        length) against=none ;;
        shallow_fusion | context) against=length ;;
        *) against=shallow_fusion ;;
      esac
      score "$target" "$method" --baseline "$exp/$target/$against/nbest.jsonl" "${options[@]}"
    done
  done
fi

if wanted 9 "RESULTS.md"; then
  mkdir -p "$work/pictures"
  cp "$exp/${targets[-1]}/ilme/tuned.png" "$work/pictures/weights.png"
  asrkit results . --exp "$exp" --out "$work/RESULTS.md"
fi
