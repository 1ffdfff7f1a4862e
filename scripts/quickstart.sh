#!/usr/bin/env bash
# Fine-tunes SmolLM2-135M-Instruct on real instructions, on a laptop's CPU. Everything it makes lies in .venv, .cache and
# runs/. Further arguments go to `slime train`, for example: bash scripts/quickstart.sh --num-rollout 40
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment gguf
echo "==> preparing the model and the data"
python scripts/assets.py model data >/dev/null

echo "==> what is trained (green) in the first conversation, and what is counted in all"
slime data preview .cache/data/alpaca_train.jsonl --input-key messages --hf-checkpoint .cache/model/SmolLM2-135M-Instruct --rows 1

run="runs/quickstart-$(date +%Y%m%d-%H%M%S)"
echo "==> training; stop it with Ctrl-C"
slime train-async recipes/quickstart-sft.yaml --run-dir "$run" --save-hf "$run/model" "$@"

python scripts/before_after.py "$run"
