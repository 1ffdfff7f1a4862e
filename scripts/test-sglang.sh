#!/usr/bin/env bash
# Tests the engine `sglang` against real SGLang servers and the real router, on the CPU of this machine: in an environment
# of its own (.cache/sglang-venv, 2.4 GB, made once in a few minutes), with a tiny random model. Everything listens on
# 127.0.0.1 and ends with the tests. About ten minutes on two cores. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

venv="${SLIME_SGLANG_VENV:-.cache/sglang-venv}" python="${PYTHON:-python3}" cpu=plugins/slime-engine-sglang/tests/sglang_on_cpu
without_deps="$(sed -n 's/^# \(.*==.*\)/\1/p' "$cpu/requirements.txt")"
editable=()
for folder in "${DISTRIBUTIONS[@]}"; do editable+=(-e "$folder"); done
stamp="$(cat "$cpu"/* "${DISTRIBUTIONS[@]/%//pyproject.toml}" | sha256sum | cut -d' ' -f1)"
if [ "$(cat "$venv/.slime-sglang" 2>/dev/null)" != "$stamp" ]; then
  echo "==> installing SGLang and slime into $venv (once; a few minutes)"
  [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
  pip() { "$venv/bin/python" -m pip install -qq --disable-pip-version-check "$@"; }
  pip hatchling editables torch==2.13.0
  # shellcheck disable=SC2086  # several words
  pip --no-deps $without_deps
  pip -r "$cpu/requirements.txt" --no-build-isolation "${editable[@]}"
  # shellcheck disable=SC2086
  pip --no-deps $without_deps # another version may have come with the rest
  site="$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
  cp "$cpu/sglang_on_cpu.py" "$site/"
  echo "import sglang_on_cpu" >"$site/sglang_on_cpu.pth"
  echo "$stamp" >"$venv/.slime-sglang"
fi
export PATH="$(cd "$venv" && pwd)/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 CUDA_VISIBLE_DEVICES=

echo "==> preparing the tokenizers"
python scripts/assets.py tokenizers >/dev/null

echo "==> pytest"
# Unbuffered: something that is imported here takes the place of stdout, and what pytest says at the end would be lost in a file. Warnings of
# SGLang's many dependencies are none of ours.
PYTHONUNBUFFERED=1 python -m pytest -q -s -W default "$@" plugins/slime-engine-sglang/tests/test_sglang_{answers,image_requests,commands,weights,processes,options,engine,images,updates,runs,cluster}.py
