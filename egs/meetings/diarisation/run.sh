#!/usr/bin/env bash
# Who spoke when and where in simulated meetings in which people sit, walk and change seats: the papers' methods beside
# ours and the usual ones. `./run.sh --help` lists stages and options; README.md tells what is shown.
set -euo pipefail
cd "$(dirname "$0")"
export ASRKIT_EXTRAS=meetings
../../TEMPLATE/diarisation.sh --embedder ../../librispeech/speaker --model resemblyzer \
  --conditions "still walk walk_all reseat hard_still hard_walk hard_reseat overlap" \
  --tune-conditions "still walk walk_all reseat hard_walk overlap" \
  --extra-conditions "still walk reseat hard_still" \
  --systems "spectral vbx ahc_voice ahc_stationary ahc_kalman pf_voice pf_stationary pf_kalman seeded_voice
    seeded_stationary seeded_kalman tracked_stationary tracked" \
  --default pf_kalman \
  --baselines "ahc_kalman:ahc_stationary pf_kalman:pf_stationary seeded_kalman:seeded_stationary tracked:vbx" "$@"
