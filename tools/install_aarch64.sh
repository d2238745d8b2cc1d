#!/usr/bin/env bash
# Install a C compiler for 64-bit ARM and an emulator, with which networks compiled for the target neon are built and
# run on a PC: gcc-aarch64-linux-gnu and qemu-user-static of Debian and Ubuntu. Needs root, or sudo.
#
# Usage:
#   tools/install_aarch64.sh
set -euo pipefail

packages=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static)
tools_are_there() {
  command -v aarch64-linux-gnu-gcc && command -v qemu-aarch64-static
}

if tools_are_there; then
  exit 0
fi
if ! command -v apt-get >/dev/null; then
  echo "$0: no apt-get here: install what your system has for ${packages[*]}" >&2
  exit 1
fi
as_root=()
((EUID == 0)) || as_root=(sudo)
"${as_root[@]}" apt-get update -qq
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}"
tools_are_there
