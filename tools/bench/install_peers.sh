#!/usr/bin/env bash
# Make a Python environment in which asrkit and everything that it is measured against import together.
#
# Usage:
#   tools/bench/install_peers.sh FOLDER [K2_REPOSITORY]  # about 6 GB; K2_REPOSITORY may be a local clone
#   source FOLDER/bin/activate
#
# k2 and fast_rnnt have no wheels for a recent torch. Both are C++ recursions under a Python file that does the rest, so
# these two are taken from their sources and only the recursions are compiled, for the CPU, as extensions of torch.
set -euo pipefail

if [[ $# -lt 1 || $1 == -* ]]; then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
  exit 1
fi
repository=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
folder=$(cd "$1" && pwd)
k2_repository=${2:-https://github.com/k2-fsa/k2.git}
python=$folder/bin/python
sources=$folder/sources

compile() { # compile NAME INCLUDE_FOLDER FOLDER: the C++ files of a folder become one extension module
  "$python" - "$@" <<'PYTHON'
import sys
from pathlib import Path
from torch.utils.cpp_extension import load

name, include, folder = sys.argv[1:]
files = [str(file) for file in Path(folder).glob("*.cpp")]
load(name, files, extra_cflags=["-O3"], extra_include_paths=[include], build_directory=folder, is_python_module=False)
PYTHON
  cp "$3/$1.so" "$site"
}

install_fast_rnnt() {
  [[ -d $sources/fast_rnnt-1.3 ]] || {
    "$python" -m pip download --no-deps --no-binary fast_rnnt -d "$sources" fast_rnnt==1.3
    tar -xf "$sources/fast_rnnt-1.3.tar.gz" -C "$sources"
  }
  local top=$sources/fast_rnnt-1.3 cpp=$sources/fast_rnnt_cpp name
  mkdir -p "$cpp"
  for name in fast_rnnt/csrc/mutual_information_cpu fast_rnnt/python/csrc/{mutual_information,fast_rnnt}; do
    cp "$top/$name.cu" "$cpp/${name//\//_}.cpp" # no CUDA in them
  done
  compile _fast_rnnt "$top" "$cpp"
  rm -rf "$site/fast_rnnt"
  cp -r "$top/fast_rnnt/python/fast_rnnt" "$site"
}

install_k2() {
  local top=$sources/k2 cpp=$sources/k2_cpp
  [[ -d $top ]] || git clone --depth 1 "$k2_repository" "$top"
  mkdir -p "$cpp/k2/csrc" "$cpp/k2/python/csrc/torch"
  cp "$top/k2/python/csrc/torch/mutual_information.h" "$cpp/k2/python/csrc/torch"
  cp "$top/k2/python/csrc/torch/mutual_information_cpu.cu" "$cpp/mutual_information_cpu.cpp"
  echo '#include <torch/extension.h>
namespace py = pybind11;' >"$cpp/k2/python/csrc/torch.h"
  { # of k2's utilities the recursion needs only the addition of logarithms and a warning
    echo '#include <cmath>
#include <iostream>
#define __host__
#define __device__
#define __forceinline__ inline
#define K2_LOG(level) std::cerr
namespace k2 {'
    sed -n '/^#define K2_MIN_LOG_DIFF_FLOAT/,/^}  \/\/ namespace k2/p' "$top/k2/csrc/utils.h"
  } >"$cpp/k2/csrc/utils.h"
  echo '#include "k2/python/csrc/torch/mutual_information.h"
PYBIND11_MODULE(_k2, m) {
  m.def("mutual_information_forward", &k2::MutualInformationCpu);
  m.def("mutual_information_backward", &k2::MutualInformationBackwardCpu);
}' >"$cpp/module.cpp"
  compile _k2 "$cpp" "$cpp"
  mkdir -p "$site/k2"
  cp "$top/k2/python/k2/"{mutual_information,rnnt_loss}.py "$site/k2"
  echo 'from k2.mutual_information import *
from k2.rnnt_loss import *' >"$site/k2/__init__.py"
  sed -n 's/^set(K2_VERSION "\(.*\)")$/__version__ = "\1"/p' "$top/CMakeLists.txt" >>"$site/k2/__init__.py"
}

[[ -x $python ]] || python3 -m venv "$folder"
mkdir -p "$sources"
"$python" -m pip install -r "$repository/tools/bench/peers.txt"
"$python" -m pip install --editable "$repository" pytest
site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
export PATH="$folder/bin:$PATH" # ninja is there
install_fast_rnnt
install_k2
cd "$folder" && "$python" -c '
import torch, torchaudio, warprnnt_numba, sherpa_onnx, fast_rnnt, k2, asrkit
print("torch", torch.__version__, "and all peers import")'
