#!/usr/bin/env bash
# The best pruning scheme for each layer of VGG-16 and ResNet-32, trained, compiled and timed (2111.11581).
# On CIFAR-10 or MNIST where $ASRKIT_IMAGES has them, else on scikit-learn's digits. `./run.sh --help` lists options.
set -euo pipefail
cd "$(dirname "$0")"
export ASRKIT_EXTRAS=executorch,vision
images=digits
for name in mnist cifar10; do
  if compgen -G "${ASRKIT_IMAGES:-/nonexistent}/$name*" >/dev/null; then images=$name; fi
done
../../TEMPLATE/pruning.sh --images "$images" --networks "vgg16 resnet32" --mappings "rule search punched_4x1 pattern filter" \
  --percents "80 90 95" --seeds "0 1 2" --processes 2 "$@"
