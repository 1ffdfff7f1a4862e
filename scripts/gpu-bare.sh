#!/usr/bin/env bash
# Shows that `python -m benchmarks.gpu` needs nothing but the bundle, torch, transformers, peft and numpy: does all jobs, or those that
# the arguments name, on the CPU in an environment that has only these, in a folder that has only the benchmarks and, as root, without
# network. The environment is made in .cache/gpu-bare, once.
#
#     bash scripts/gpu-bare.sh [--all | --phase PHASE … | --job JOB …]
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
venv="$PWD/.cache/gpu-bare" out="$PWD/gpu-results"
bash scripts/gpu-bundle.sh

if [ ! -e "$venv/made" ]; then
  echo "==> installing torch, transformers, peft and numpy into $venv (once)"
  "${PYTHON:-python3}" -m venv "$venv"
  PIP_CONSTRAINT=constraints.txt "$venv/bin/pip" install -qq --disable-pip-version-check torch transformers peft numpy
  touch "$venv/made"
fi
place="$(mktemp -d)"
trap 'rm -rf "$place"' EXIT
cp -r benchmarks .gpu-bundle "$place"
cd "$place"
alone=()
[ "$(id -u)" != 0 ] || alone=(unshare -n)
"${alone[@]}" env -i HOME="$place" PATH="$venv/bin:/usr/bin:/bin:/usr/sbin:/sbin" bash -c \
  'ip link set lo up 2>/dev/null; source .gpu-bundle/use.sh && python3 -m benchmarks.gpu --without-gpu --budget-seconds 1800 --out "$@"' - "$out" "${@:---all}"
