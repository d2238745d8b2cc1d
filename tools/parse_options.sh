# shellcheck shell=bash
# Options of a script, in the manner of Kaldi: source this after setting each option's default as a variable.
#
#   stage=1
#   stop_stage=100
#   source "$(dirname "$0")/parse_options.sh"
#
# `--stop-stage 5` then sets `stop_stage`. The last of equal options wins. `--help` prints the comment at the head of the
# script. Anything else is an error: an option without such a variable, a missing value, a word that is not an option.

while (($#)); do
  if [[ $1 == --help || $1 == -h ]]; then
    awk 'NR == 1 && /^#!/ {next} !/^#/ {exit} {sub(/^# ?/, ""); print}' "$0"
    exit 0
  fi
  if [[ ! $1 =~ ^--[a-z][a-z0-9_-]*$ ]]; then
    echo "$0: unexpected argument '$1' (see --help)" >&2
    exit 1
  fi
  _name=${1#--}
  _name=${_name//-/_}
  if [[ -z ${!_name+set} ]]; then
    echo "$0: unknown option '$1' (see --help)" >&2
    exit 1
  fi
  if (($# < 2)) || [[ $2 =~ ^--[a-z][a-z0-9_-]*$ ]]; then # "--hours 20", options for another command, is a value
    echo "$0: option '$1' needs a value" >&2
    exit 1
  fi
  if [[ ${!_name} =~ ^(true|false)$ && ! $2 =~ ^(true|false)$ ]]; then
    echo "$0: option '$1' is true or false, not '$2'" >&2
    exit 1
  fi
  if [[ $_name =~ ^(stop_)?stage$ && ! $2 =~ ^-?[0-9]+$ ]]; then
    echo "$0: option '$1' is a whole number, not '$2'" >&2
    exit 1
  fi
  printf -v "$_name" '%s' "$2"
  shift 2
done
unset _name
