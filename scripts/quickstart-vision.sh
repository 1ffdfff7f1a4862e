#!/usr/bin/env bash
# Teaches a tiny vision-language model to read handwritten digits, from random weights, on a laptop's CPU. Everything it makes
# lies in .venv, .cache and runs/. Further arguments go to `slime train-async`, for example: --num-rollout 100
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment pillow
echo "==> preparing the model and the digits"
python scripts/assets.py digits >/dev/null

echo "==> what is trained in the first conversation, and where its image is"
slime data preview .cache/digits/train.jsonl --input-key messages --multimodal-keys '{"image": "images"}' \
  --hf-checkpoint .cache/digits/model --rows 1

run="runs/vision-$(date +%Y%m%d-%H%M%S)"
echo "==> training; stop it with Ctrl-C"
slime train-async recipes/quickstart-vision.yaml --run-dir "$run" --save-hf "$run/model" "$@"

echo "==> held-out digits that are named rightly"
for model in .cache/digits/model "$run/model"; do
  echo "$model: $(python scripts/digit_accuracy.py "$model" .cache/digits/heldout.jsonl)" \
    "(shown the image of another row: $(python scripts/digit_accuracy.py "$model" .cache/digits/heldout.jsonl --shuffled))"
done
