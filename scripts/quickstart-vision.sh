#!/usr/bin/env bash
# Teaches a tiny vision-language model to read handwritten digits, on a laptop's CPU: first it is shown answers, from random weights,
# then it is rewarded for right ones. Everything it makes lies in .venv, .cache and runs/. Further arguments go to both commands, for
# example: --rollout-seed 1
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
echo "==> fine-tuning on answers; stop it with Ctrl-C"
slime train-async recipes/quickstart-vision.yaml --run-dir "$run/sft" --save-hf "$run/sft-model" "$@"
echo "==> reinforcement learning: answers are sampled, and rewarded where they are right"
slime train recipes/quickstart-vision-grpo.yaml --hf-checkpoint "$run/sft-model" --run-dir "$run/grpo" --save-hf "$run/grpo-model" "$@"
slime report "$run/sft" "$run/grpo"

echo "==> held-out digits that are named rightly"
python scripts/digit_accuracy.py .cache/digits/heldout.jsonl .cache/digits/model "$run/sft-model" "$run/grpo-model"
