#!/usr/bin/env bash
# Set asrkit up in .venv, or in the Python environment that is active. Needs Python 3.10 or newer; no root.
#
# Usage:
#   tools/setup.sh         # safe to repeat; does nothing when nothing has changed
#   source tools/setup.sh  # in a script: puts that environment first in PATH as well
#   ASRKIT_SKIP_SETUP=1    # set for a script: trust the environment, where there is no network for instance
#   ASRKIT_EXTRAS=meetings # set for any of these: further extras of setup.py, with commas between them
set -euo pipefail

asrkit_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
asrkit_env=$asrkit_root/.venv
if [[ -x ${VIRTUAL_ENV:-}/bin/python ]]; then
  asrkit_env=$VIRTUAL_ENV
elif [[ -x ${CONDA_PREFIX:-}/bin/python && ${CONDA_DEFAULT_ENV:-base} != base ]]; then
  asrkit_env=$CONDA_PREFIX
fi

setup_asrkit() (
  cd "$asrkit_root"
  python=$asrkit_env/bin/python
  log=$asrkit_env/asrkit-setup.log
  stamp=$asrkit_env/asrkit-setup.stamp
  extras=mini,export,serve,dev${ASRKIT_EXTRAS:+,$ASRKIT_EXTRAS}

  step() { # step NAME COMMAND...: run quietly, with the time it took; on failure show the end of the log
    local name=$1 start=$SECONDS
    shift
    printf 'setup: %s ... ' "$name"
    if "$@" >>"$log" 2>&1; then
      echo "$((SECONDS - start)) s"
    else
      echo "failed"
      tail -n 20 "$log"
      echo "setup: the whole log is $log" >&2
      exit 1
    fi
  }

  # shellcheck disable=SC2329  # step calls it
  make_environment() { # some systems split ensurepip off: then their own pip fills the new environment
    local system_python=$1
    "$system_python" -m venv "$asrkit_env" ||
      { "$system_python" -m venv --without-pip --clear "$asrkit_env" &&
        "$system_python" -m pip --python "$python" install pip; }
  }

  find_python() {
    local candidate
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
      if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
        echo "$candidate"
        return
      fi
    done
    echo "setup: no Python 3.10 or newer found as python3; install one, or activate an environment that has it" >&2
    return 1
  }

  state() { # what the environment was made for
    echo "$asrkit_root $extras"
    cat setup.py pyproject.toml tools/constraints.txt
  }

  if [[ -n ${ASRKIT_SKIP_SETUP:-} ]] || { [[ -x $python && -f $stamp ]] && state | cmp -s - "$stamp"; }; then
    exit 0
  fi

  if [[ ! -x $python ]]; then
    system_python=$(find_python)
    mkdir -p "$asrkit_env"
    log=$asrkit_root/.setup.log # the environment may be cleared while it is made
    step "Python environment ${asrkit_env#"$asrkit_root"/}" make_environment "$system_python"
    mv "$log" "$asrkit_env/asrkit-setup.log"
    log=$asrkit_env/asrkit-setup.log
  fi
  : >"$log"
  pip=("$python" -m pip install --disable-pip-version-check --constraint tools/constraints.txt)
  step "torch" "${pip[@]}" torch==2.13.0
  step "asrkit and the packages it needs" "${pip[@]}" --editable ".[$extras]"
  step "check" "$asrkit_env/bin/asrkit" --help
  state >"$stamp"
)

setup_asrkit
export PATH="$asrkit_env/bin:$PATH"
