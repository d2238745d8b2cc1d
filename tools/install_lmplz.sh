#!/usr/bin/env bash
# Build kenlm's n-gram estimator, lmplz, into the Python environment. `asrkit lm train --type ngram` finds it there;
# without it, it estimates the same models more slowly and in more memory.
#
# Usage:
#   tools/install_lmplz.sh
#
# Needs a C++ compiler and Boost: libboost-{program-options,system,thread,test}-dev of Debian and Ubuntu, boost-devel of
# Fedora, libboost-devel of conda, or a copy of one's own, whose place BOOST_ROOT tells. No root is needed for the rest.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=tools/setup.sh
source tools/setup.sh

version=$(sed -n 's/^kenlm==//p' tools/constraints.txt)
bin=$(dirname "$(command -v asrkit)")
if [[ -x $bin/lmplz ]]; then
  echo "$bin/lmplz is there"
  exit 0
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
quietly() { # quietly COMMAND...: show the output only if it fails
  "$@" >"$work/log" 2>&1 || {
    tail -n 20 "$work/log" >&2
    echo "$0: failed: $*; Boost is needed, see the head of this file" >&2
    exit 1
  }
}
command -v cmake >/dev/null || quietly python -m pip install cmake
quietly python -m pip download --no-deps --no-binary kenlm --dest "$work" "kenlm==$version"
tar -xzf "$work/kenlm-$version.tar.gz" -C "$work"
quietly cmake -S "$work/kenlm-$version" -B "$work/build" -DCMAKE_BUILD_TYPE=Release -DFORCE_STATIC=ON \
  -DBUILD_TESTING=OFF -DENABLE_PYTHON=OFF
quietly cmake --build "$work/build" --target lmplz
install -m 755 "$work/build/bin/lmplz" "$bin/lmplz"
echo "$bin/lmplz"
