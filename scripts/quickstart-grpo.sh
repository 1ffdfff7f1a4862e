#!/usr/bin/env bash
# Trains SmolLM2-135M-Instruct with GRPO to add one-digit numbers, on a laptop's CPU. Everything it makes lies in .venv,
# .cache and runs/. Further arguments go to `slime train`, for example: bash scripts/quickstart-grpo.sh --num-rollout 40
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment gguf reasoning-gym
echo "==> preparing the model and the tasks"
python scripts/assets.py model >/dev/null
bash scripts/tasks.sh

echo "==> training; stop it with Ctrl-C"
slime train recipes/quickstart-grpo.yaml --run-dir "runs/grpo-$(date +%Y%m%d-%H%M%S)" "$@"
