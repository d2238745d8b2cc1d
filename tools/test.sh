#!/usr/bin/env bash
# Set asrkit up and run all its checks: style, shell scripts, tests.
#
# Usage:
#   tools/test.sh                    # everything
#   tools/test.sh tests/text -k bpe  # arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/setup.sh
source tools/setup.sh

ruff check
ruff format --check
find .ci/run egs tests tools -type f \( -name '*.sh' -o -path .ci/run \) -exec shellcheck -x {} +
export OMP_NUM_THREADS=1 # the processes of pytest share the cores
pytest -q -n "${PYTEST_PROCESSES:-2}" "$@"
