#!/usr/bin/env bash
# The best pruning scheme for each layer of VGG-16 and ResNet-32, trained, compiled and timed (2111.11581).
# On CIFAR-10 or MNIST where $ASRKIT_IMAGES has them, else on scikit-learn's digits. `./run.sh --help` lists options;
# with `--networks` only those run, in the way of VGG-16.
set -euo pipefail
cd "$(dirname "$0")"
export ASRKIT_EXTRAS=executorch,vision
images=digits
for name in mnist cifar10; do
  if compgen -G "${ASRKIT_IMAGES:-/nonexistent}/$name*" >/dev/null; then images=$name; fi
done
recipe=(../../TEMPLATE/pruning.sh --images "$images" --processes 2)
if [[ " $* " != *" --networks "* && " $* " != *" --help "* ]]; then # less of the deeper one; RESULTS.md when all is there
  "${recipe[@]}" --networks resnet32 --mappings rule --percents 80 --methods admm --method-percents 80 --seeds "0 1 2" --stop-stage 6 "$@"
fi
"${recipe[@]}" --networks vgg16 --mappings "rule punched_4x1 pattern" --percents "90 99" \
  --more-mappings "search unstructured punched_16x1 filter" --method-percents 99 --seeds "0 1 2" "$@"
