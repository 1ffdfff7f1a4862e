#!/usr/bin/env bash
# Trains SmolLM2-135M-Instruct with GRPO to add one-digit numbers, as quickstart-grpo.sh does, but generates with its weights in FP8.
# Everything it makes lies in .venv, .cache and runs/. Further arguments go to `slime train`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment gguf reasoning-gym
echo "==> preparing the model, the FP8 checkpoint and the tasks"
python scripts/assets.py model >/dev/null
bash scripts/tasks.sh
model=.cache/model/SmolLM2-135M-Instruct
[ -f "$model-FP8/config.json" ] || slime convert hf-to-fp8 --model-dir "$model" --save-dir "$model-FP8" --strategy block --block-size 128 128

echo "==> training; stop it with Ctrl-C"
slime train recipes/quickstart-grpo-fp8.yaml --run-dir "runs/grpo-fp8-$(date +%Y%m%d-%H%M%S)" "$@"
