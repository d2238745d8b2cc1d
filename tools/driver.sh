# shellcheck shell=bash
# The beginning of a driver: source this after setting the default of each option. It takes the options, sets asrkit up,
# and gives $root, the folder of the repository, and the functions below.
# shellcheck disable=SC2034,SC2154  # a driver uses what it wants of this, and sets stage and stop_stage

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=tools/parse_options.sh
source "$root/tools/parse_options.sh"
# shellcheck source=tools/setup.sh
source "$root/tools/setup.sh"

wanted() { # wanted N DESCRIPTION: whether stage N is asked for
  (($1 >= stage && $1 <= stop_stage)) || return 1
  echo "stage $1: $2 ($(date +%H:%M:%S))"
}

at_once=1 # processes
running=0
start() { # start COMMAND...: as one of the processes
  "$@" &
  ((++running < at_once)) || wait -n
}

finish() { # wait for all of them
  for _ in $(seq "$at_once"); do wait -n || (($? == 127)); done # 127: none is left
  running=0
}
