#!/usr/bin/env bash
# A speaker embedder from one utterance of each of LibriSpeech's 251 training speakers, for meetings (../../meetings).
# `./run.sh --help` lists stages and options.
set -euo pipefail
cd "$(dirname "$0")"
../../TEMPLATE/speaker.sh --corpus librispeech_speakers "$@"
