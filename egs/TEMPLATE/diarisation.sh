#!/usr/bin/env bash
# Simulate meetings, tune each diarisation system on some and measure it on others. The run.sh of each recipe calls this
# with its choices; every option can be given to run.sh too.
#
# Stages
#   1  speakers, and a network that embeds their voices   (the recipe of --embedder)
#   2  simulate meetings                                  data/tune_<condition>, data/test_<condition>
#   3  observe them: voices and azimuths, once for all    exp/observations/<set>
#   4  tune each system on the tuning meetings            exp/tuned/<system>.yaml
#   5  diarise the test meetings with each system         exp/<system>/<condition>
#   6  score                                              score.json beside hyp.rttm
#   7  speech found instead of given; people enrolled, decided after 2 s; real meetings of AMI
#   8  pictures and RESULTS.md
#
# Options
#   --stage N, --stop-stage N  first and last stage (1, 8); meetings and observations that are done are left as they are
#   --embedder DIR             recipe that prepares speakers and trains an embedder, with --corpus NAME; tuning
#                              meetings are of the speakers of its dev set, test meetings of --test-set NAME (test)
#   --speakers DIR             where that recipe worked: data/default, exp/default (its own folder)
#   --model NAME               another embedder, an ONNX file or resemblyzer; that of the recipe if empty
#   --conditions "A B"         each a file conf/conditions/<condition>.options for `asrkit data simulate`
#   --tune-conditions "A B"    those that are tuned on, and --extra-conditions "A B" those of stage 7
#   --systems "A B"            each a file conf/systems/<system>.yaml, and .options with what is tuned
#   --default NAME             the system of stage 7, a particle filter
#   --ami DIR                  folder of AMI excerpts: wav/ and RTTM (ami_excerpts_30s under $ASRKIT_CORPORA, if there)
#   --baselines "A:B C:D"      systems that are compared with a baseline, as system:baseline
#   --tune-meetings N, --test-meetings N    meetings a condition (5, 20)
#   --trials N                 points tried for each system (24)
#   --jobs N                   processes (2)
#   --work DIR                 where data/, exp/, pictures/ and RESULTS.md go (the recipe's own folder)
#   --simulate-options "…"     more options for `asrkit data simulate`, as "--simulation.duration 60"
#   --prepare-options "…", --train-options "…"    for the recipe of the embedder
set -euo pipefail

stage=1
stop_stage=8
embedder=
corpus=librispeech_speakers
test_set="test"
speakers=
model=
conditions=
tune_conditions=
extra_conditions=
systems=
default=
ami=${ASRKIT_CORPORA:-/nonexistent}/ami_excerpts_30s
baselines=
tune_meetings=5
test_meetings=20
trials=24
jobs=2
work=.
simulate_options=
prepare_options=
train_options=
# shellcheck source=tools/driver.sh
source "$(dirname "$0")/../../tools/driver.sh"

at_once=$jobs
data=$work/data
exp=$work/exp
speakers=${speakers:-$embedder}
speech=$speakers/data/default
own=$speakers/exp/default
model=${model:-$own}
plda=$exp/plda-$(basename "$model" .onnx).npz
for list in conditions tune_conditions extra_conditions systems baselines simulate_options; do
  read -ra "${list?}" <<<"${!list//$'\n'/ }"
done

if wanted 1 "speakers and their embedder"; then
  if [[ $model == resemblyzer && -z ${ASRKIT_SKIP_SETUP:-} ]]; then # its requirements are old, and only its weights used
    python3 -m pip install --quiet --no-deps --constraint "$root/tools/constraints.txt" resemblyzer
  fi
  last=$([[ $model == "$own" ]] && echo 2 || echo 1) # another embedder needs the speakers only
  if [[ ! -f $speech/$test_set.jsonl.gz || ($last == 2 && ! -f $own/train.json) ]]; then
    "$embedder/run.sh" --stop-stage "$last" --corpus "$corpus" --work "$(realpath -m "$speakers")" \
      --prepare-options "$prepare_options" --train-options "$train_options"
  fi
  [[ -f $plda ]] || asrkit speaker plda --model "$model" --cuts "$speech/train.jsonl.gz" --out "$plda"
  [[ -f $data/test/rest.jsonl.gz ]] ||
    python3 "$root/egs/TEMPLATE/enrol.py" "$speech/$test_set.jsonl.gz" "$data/test"
fi

simulate() { # simulate SET SPEECH MEETINGS SEED CONDITION
  local options
  read -ra options <<<"$(tr '\n' ' ' <"conf/conditions/$5.options")"
  asrkit data simulate "$data/$1" --speech "$2" --meetings "$3" --seed "$4" --jobs "$jobs" "${options[@]}" \
    "${simulate_options[@]}"
}

if wanted 2 "simulate meetings"; then
  for condition in "${tune_conditions[@]}"; do
    simulate "tune_$condition" "$speech/dev.jsonl.gz" "$tune_meetings" 1000 "$condition"
  done
  for condition in "${conditions[@]}"; do
    simulate "test_$condition" "$data/test/rest.jsonl.gz" "$test_meetings" 0 "$condition"
  done
fi

diarise() { # diarise SET OUT OPTIONS...: on one core, which the times are for
  OMP_NUM_THREADS=1 asrkit diarise "$data/$1/meetings.jsonl.gz" --model "$model" --plda "$plda" \
    --array "$data/$1/array.yaml" --out "$2" --no_pages "${@:3}"
}

diarise_given() { # as diarise, told when somebody speaks; what is observed is kept
  diarise "$1" "$2" --speech "$data/$1/ref.rttm" --observations "$exp/observations/$1" "${@:3}"
}

score() { # score SET SYSTEM OPTIONS...: of a condition
  local out=$exp/$2/${1#test_}
  asrkit der --refs "$data/$1/ref.rttm" --hyps "$out/hyp.rttm" --out "$out" --tracks "$data/$1/tracks.jsonl" \
    --found_tracks "$out/tracks.jsonl" "${@:3}"
}

sets=("${tune_conditions[@]/#/tune_}" "${conditions[@]/#/test_}")

if wanted 3 "observe"; then
  for set in "${sets[@]}"; do
    start diarise_given "$set" "$exp/observed/$set"
  done
  finish
fi

if wanted 4 "tune"; then
  tuned_sets=("${tune_conditions[@]/#/$exp/observations/tune_}")
  refs=("${tune_conditions[@]/#/$data/tune_}")
  for system in "${systems[@]}"; do
    if [[ ! -f conf/systems/$system.options ]]; then
      mkdir -p "$exp/tuned" && cp "conf/systems/$system.yaml" "$exp/tuned/$system.yaml"
      continue
    fi
    read -ra options <"conf/systems/$system.options"
    asrkit tune diarisation --observations "${tuned_sets[@]}" --refs "${refs[@]/%//ref.rttm}" --plda "$plda" \
      --conf "conf/systems/$system.yaml" --options "${options[@]}" --trials "$trials" --jobs "$jobs" \
      --out "$exp/tuned/$system.yaml"
  done
fi

if wanted 5 "diarise"; then
  for condition in "${conditions[@]}"; do
    for system in "${systems[@]}"; do
      start diarise_given "test_$condition" "$exp/$system/$condition" --conf "$exp/tuned/$system.yaml"
    done
  done
  finish
fi

if wanted 6 "score"; then
  for condition in "${conditions[@]}"; do
    for system in "${systems[@]}"; do
      options=()
      for pair in "${baselines[@]}"; do
        [[ ${pair%:*} != "$system" ]] || options=(--baseline "$exp/${pair#*:}/$condition/hyp.rttm")
      done
      start score "test_$condition" "$system" "${options[@]}"
    done
  done
  finish
fi

if wanted 7 "speech found, people enrolled, real meetings"; then
  people=()
  for file in "$data/test"/*.flac; do people+=("$(basename "$file" .flac)=$file"); done
  for condition in "${extra_conditions[@]}"; do
    set=test_$condition
    start diarise "$set" "$exp/found/$condition" --conf "$exp/tuned/$default.yaml"
    for lag in 0 2 1000; do
      start diarise_given "$set" "$exp/lag_$lag/$condition" --conf "$exp/tuned/$default.yaml" --lag "$lag" \
        --enrol "${people[@]}"
    done
  done
  finish
  for condition in "${extra_conditions[@]}"; do
    for system in found lag_0 lag_2 lag_1000; do start score "test_$condition" "$system"; done
  done
  if [[ -d $ami ]]; then
    asrkit diarise "$ami/wav" --model "$model" --plda "$plda" --out "$exp/ami" --conf "$exp/tuned/$default.yaml"
    asrkit der --refs "$ami"/*.rttm --hyps "$exp/ami/hyp.rttm" --out "$exp/ami"
  fi
  finish
fi

if wanted 8 "pictures and RESULTS.md"; then
  drawn=()
  for condition in "${extra_conditions[@]}"; do drawn+=("${systems[@]/%//$condition}"); done
  asrkit plot der "${drawn[@]/#/$exp/}" --out "$work/pictures/der.png"
  set=${conditions[1]:-${conditions[0]}}
  seen=("$exp/observations/test_$set"/*.npz)
  asrkit plot timeline --refs "$data/test_$set/ref.rttm" --hyps "$exp/$default/$set/hyp.rttm" \
    --tracks "$data/test_$set/tracks.jsonl" --found-tracks "$exp/$default/$set/tracks.jsonl" \
    --observations "${seen[0]}" --out "$work/pictures/timeline.png"
  asrkit results . --exp "$exp" --out "$work/RESULTS.md"
fi
