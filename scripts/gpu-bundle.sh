#!/usr/bin/env bash
# Makes the folder .gpu-bundle: what `python -m benchmarks.gpu` needs on a machine with a GPU that has torch, transformers, peft, triton and
# numpy, but no network and nothing of this project (docs/gpu.md). Run it anew when the code changed.
#
#     bash scripts/gpu-bundle.sh                      # here
#     source .gpu-bundle/use.sh                       # on the machine, in the root of the repository
#     python3 -m benchmarks.gpu --all
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

# Pure Python, or small and then for each Python of PYTHONS. Not carried: what comes with torch, transformers or peft (jinja2, packaging,
# pyyaml, safetensors, tokenizers, accelerate, psutil, typer …), and pyarrow, which only Arrow and Parquet files need.
PACKAGES=(annotated-types ijson markdown-it-py mdurl pluggy pydantic pydantic-core pygments rich tenacity typing-extensions typing-inspection)
# slime's own: those that `benchmarks.gpu` runs.
OWN=(. slime_fp8 slime_losses slime_rollout_sft slime_rollout_sglang plugins/slime-torch plugins/slime-engine-local)
PYTHONS=(3.11 3.12 3.13)
LIMIT_MIB=60

[ "${1:-}" != --list ] || { printf '%s\n' "${PACKAGES[@]}"; echo; printf '%s\n' "${OWN[@]}"; exit; }
bundle="${1:-.gpu-bundle}"
command -v hatchling >/dev/null || prepare_environment
rm -rf "$bundle"
mkdir -p "$bundle/wheels"

requirements=()
for package in "${PACKAGES[@]}"; do # the versions that the tests run with
  requirements+=("$(grep -i "^${package//-/[-_]}==" constraints.txt)")
done
for python in "${PYTHONS[@]}"; do
  python3 -m pip download -qq --disable-pip-version-check --no-deps --only-binary=:all: --python-version "$python" --implementation cp \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    -d "$bundle/wheels" "${requirements[@]}"
done
for folder in "${OWN[@]}"; do
  python3 -m pip wheel -qq --disable-pip-version-check --no-deps --no-build-isolation --no-cache-dir -w "$bundle/wheels" "./$folder"
done
cp scripts/gpu_bundle_use.py "$bundle/unpack.py"
git describe --always --dirty --abbrev=12 >"$bundle/commit" 2>/dev/null || echo unknown >"$bundle/commit"

cat >"$bundle/use.sh" <<'USE'
# Unpacks the wheels for this machine's Python into a temporary folder and puts that on PYTHONPATH. To be sourced.
SLIME_GPU_BUNDLE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
_site="$(mktemp -d)" && "${PYTHON:-python3}" "$SLIME_GPU_BUNDLE/unpack.py" "$SLIME_GPU_BUNDLE/wheels" "$_site" &&
  export SLIME_GPU_BUNDLE PYTHONPATH="$_site${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
USE

size="$(du -sm "$bundle" | cut -f1)"
[ "$size" -lt "$LIMIT_MIB" ] || { echo "$bundle takes $size MiB; at most $LIMIT_MIB are allowed." >&2; exit 1; }
echo "$bundle: $(ls "$bundle/wheels" | wc -l) wheels, $size MiB"
