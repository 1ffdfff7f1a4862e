#!/usr/bin/env bash
# Teaches SmolLM2-135M-Instruct to answer requests with tool calls, on a laptop's CPU. Everything it makes lies in .venv, .cache and
# runs/. Further arguments go to `slime train-async`, for example: bash scripts/quickstart.sh --num-rollout 40
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

prepare_environment gguf
echo "==> preparing the model and the data"
python scripts/assets.py model >/dev/null
python scripts/tool_calls.py

echo "==> what is trained (green) in the first conversation, and what is counted in all"
slime data preview .cache/tasks/tool_calls_train.jsonl --input-key messages --hf-checkpoint .cache/model/SmolLM2-135M-Instruct --rows 1

run="runs/quickstart-$(date +%Y%m%d-%H%M%S)"
echo "==> training; stop it with Ctrl-C"
slime train-async recipes/quickstart-sft.yaml --run-dir "$run" --save-hf "$run/model" "$@"

python scripts/before_after.py "$run"
slime report "$run"
