#!/usr/bin/env bash
# Simulate meetings, tune each diarisation system on some and measure it on others. The run.sh of each recipe calls this
# with its choices; every option can be given to run.sh too.
#
# Stages
#   1  speakers, and a network that embeds their voices   (the recipe of --embedder), data/speech
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
#   --embedder DIR             recipe that trains the embedder, with data/default/{train,dev,test}.jsonl.gz: tuning
#                              meetings are of speakers of dev, test meetings of those of test
#   --model NAME               another embedder: an ONNX file, or resemblyzer
#   --conditions "A B"         each a file conf/conditions/<condition>.options for `asrkit data simulate`
#   --tune-conditions "A B"    those that are tuned on
#   --systems "A B"            each a file conf/systems/<system>.yaml, and .options with what is tuned
#   --default NAME             the system of stage 7; --online NAME the one that decides after a lag
#   --ami DIR                  folder of AMI excerpts: wav/ and RTTM (ami_excerpts_30s under $ASRKIT_CORPORA, if there)
#   --baselines "A:B C:D"      systems that are compared with a baseline, as system:baseline
#   --tune-meetings N, --test-meetings N    meetings a condition (5, 20)
#   --trials N                 points tried for each system (48)
#   --jobs N                   processes (2)
#   --work DIR                 where data/, exp/, pictures/ and RESULTS.md go (the recipe's own folder)
#   --simulate-options "…"     more options for `asrkit data simulate`, as "--simulation.duration 60"
#   --prepare-options "…", --train-options "…"    for the recipe of the embedder
set -euo pipefail

stage=1
stop_stage=8
embedder=
model=
conditions=
tune_conditions=
systems=
default=
online=
ami=${ASRKIT_CORPORA:-/nonexistent}/ami_excerpts_30s
baselines=
tune_meetings=5
test_meetings=20
trials=48
jobs=2
work=.
simulate_options=
prepare_options=
train_options=
root=$(cd "$(dirname "$0")/../.." && pwd)
# shellcheck source=tools/parse_options.sh
source "$root/tools/parse_options.sh"
# shellcheck source=tools/setup.sh
source "$root/tools/setup.sh"

data=$work/data
exp=$work/exp
own=$embedder/exp/default
if [[ -z $model ]]; then
  model=$own
  plda=$own/plda.npz
else
  plda=$exp/plda-$(basename "$model" .onnx).npz
fi
read -ra conditions <<<"$conditions"
read -ra tune_conditions <<<"$tune_conditions"
read -ra systems <<<"$systems"
read -ra baselines <<<"$baselines"
read -ra simulate_options <<<"$simulate_options"

wanted() { # wanted N DESCRIPTION: whether stage N is asked for
  (($1 >= stage && $1 <= stop_stage)) || return 1
  echo "stage $1: $2 ($(date +%H:%M:%S))"
}

if wanted 1 "speakers and their embedder"; then
  if [[ ! -f $own/plda.npz ]]; then
    "$root/egs/librispeech/speaker/run.sh" --stop-stage 3 --work "$embedder" --prepare-options "$prepare_options" \
      --train-options "$train_options"
  fi
  if [[ ! -f $plda ]]; then
    asrkit speaker plda --model "$model" --cuts "$embedder/data/default/train.jsonl.gz" --out "$plda"
  fi
  [[ -f $data/test/rest.jsonl.gz ]] ||
    python3 "$root/egs/TEMPLATE/enrol.py" "$embedder/data/default/test.jsonl.gz" "$data/test"
fi

simulate() { # simulate SET SPEECH MEETINGS SEED CONDITION
  local options
  read -ra options <<<"$(tr '\n' ' ' <"conf/conditions/$5.options")"
  asrkit data simulate "$data/$1" --speech "$2" --meetings "$3" --seed "$4" --jobs "$jobs" "${options[@]}" \
    "${simulate_options[@]}"
}

if wanted 2 "simulate meetings"; then
  for condition in "${tune_conditions[@]}"; do
    simulate "tune_$condition" "$embedder/data/default/dev.jsonl.gz" "$tune_meetings" 1000 "$condition"
  done
  for condition in "${conditions[@]}"; do
    simulate "test_$condition" "$data/test/rest.jsonl.gz" "$test_meetings" 0 "$condition"
  done
fi

diarise() { # diarise SET OUT OPTIONS...: on one core, which the times are for
  OMP_NUM_THREADS=1 asrkit diarise "$data/$1/meetings.jsonl.gz" --model "$model" --plda "$plda" \
    --array "$data/$1/array.yaml" --out "$2" --no_pages "${@:3}"
}

given() { # given SET: options that tell when somebody speaks, and keep what is observed
  echo --speech "$data/$1/ref.rttm" --observations "$exp/observations/$1"
}

score() { # score SET OUT OPTIONS...
  asrkit der --refs "$data/$1/ref.rttm" --hyps "$2/hyp.rttm" --out "$2" --tracks "$data/$1/tracks.jsonl" \
    --found_tracks "$2/tracks.jsonl" "${@:3}"
}

sets=("${tune_conditions[@]/#/tune_}" "${conditions[@]/#/test_}")

if wanted 3 "observe"; then
  running=0
  for set in "${sets[@]}"; do
    # shellcheck disable=SC2046  # options without spaces
    diarise "$set" "$exp/observed/$set" $(given "$set") &
    ((++running < jobs)) || wait -n
  done
  for _ in $(seq "$jobs"); do wait -n || (($? == 127)); done # 127: none is left
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
      # shellcheck disable=SC2046  # options without spaces
      diarise "test_$condition" "$exp/$system/$condition" --conf "$exp/tuned/$system.yaml" $(given "test_$condition")
    done
  done
fi

if wanted 6 "score"; then
  for condition in "${conditions[@]}"; do
    for system in "${systems[@]}"; do score "test_$condition" "$exp/$system/$condition"; done
    for pair in "${baselines[@]}"; do
      score "test_$condition" "$exp/${pair%:*}/$condition" --baseline "$exp/${pair#*:}/$condition/hyp.rttm"
    done
  done
fi

if wanted 7 "speech found, people enrolled, real meetings"; then
  people=()
  for file in "$data/test"/*.flac; do people+=("$(basename "$file" .flac)=$file"); done
  for condition in "${conditions[@]}"; do
    set=test_$condition
    diarise "$set" "$exp/found/$condition" --conf "$exp/tuned/$default.yaml"
    for lag in 0 2 1000; do
      # shellcheck disable=SC2046  # options without spaces
      diarise "$set" "$exp/lag_$lag/$condition" --conf "$exp/tuned/$online.yaml" $(given "$set") --lag "$lag" \
        --enrol "${people[@]}"
      score "$set" "$exp/lag_$lag/$condition"
    done
    score "$set" "$exp/found/$condition" --baseline "$exp/$default/$condition/hyp.rttm"
  done
  if [[ -d $ami ]]; then
    OMP_NUM_THREADS=1 asrkit diarise "$ami/wav" --model "$model" --plda "$plda" --out "$exp/ami" --conf "$exp/tuned/$default.yaml"
    asrkit der --refs "$ami"/*.rttm --hyps "$exp/ami/hyp.rttm" --out "$exp/ami"
  fi
fi

if wanted 8 "pictures and RESULTS.md"; then
  drawn=()
  for condition in "${conditions[@]}"; do drawn+=("${systems[@]/%//$condition}"); done
  asrkit plot der "${drawn[@]/#/$exp/}" --out "$work/pictures/der.png"
  asrkit results . --exp "$exp" --out "$work/RESULTS.md"
fi
