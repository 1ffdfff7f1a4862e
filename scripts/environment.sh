# Sourced by the other scripts: makes the virtual environment .venv with slime in it, once, and again when a
# requirement changed. Set PYTHON to choose the interpreter, SLIME_VENV to put the environment elsewhere.

DISTRIBUTIONS=(. slime_fp8 slime_losses slime_rollout_sft slime_rollout_sglang plugins/slime-torch plugins/slime-engine-local plugins/slime-engine-sglang plugins/slime-megatron plugins/slime-rewards plugins/slime-report plugins/slime-serve plugins/slime-trackers plugins/slime-compat recipes)

"${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "slime needs Python 3.11 or newer; ${PYTHON:-python3} is $("${PYTHON:-python3}" --version). Set PYTHON=/path/to/python3.11." >&2
  exit 1
}

# dependency_group NAME: the requirements of a dependency group of the root pyproject.toml.
dependency_group() {
  "${PYTHON:-python3}" -c 'import sys, tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"][sys.argv[1]])' "$1"
}

# prepare_environment [EXTRA_REQUIREMENT…]
prepare_environment() {
  local venv="${SLIME_VENV:-.venv}" python="${PYTHON:-python3}" projects=() editable=() sources=() stamp
  for folder in "${DISTRIBUTIONS[@]}"; do
    projects+=("$folder/pyproject.toml")
    editable+=(-e "$folder")
    sources+=("$folder/$([ "$folder" = . ] && echo slime_core || echo src)")
  done
  stamp="$(cat constraints.txt "${projects[@]}" <(echo "$@") | sha256sum | cut -d' ' -f1)"
  if [ "$(cat "$venv/.slime-$#" 2>/dev/null)" != "$stamp" ]; then
    echo "==> installing slime and what it needs into $venv (once; a few minutes)"
    [ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
    local install=("$venv/bin/pip" install -qq --disable-pip-version-check --no-compile)
    "${install[@]}" --upgrade pip # the one that comes with Python takes minutes to choose among the files of an index
    PIP_CONSTRAINT=constraints.txt "${install[@]}" hatchling editables torch
    PIP_CONSTRAINT=constraints.txt "${install[@]}" --no-build-isolation "${editable[@]}" "$@"
    "$venv/bin/python" -W ignore -m compileall -qq -j 0 "$venv/lib" || : # on all cores; pip would do it on one
    echo "$stamp" >"$venv/.slime-$#"
  fi
  # Where Python is told to write no byte code, nobody else compiles these folders, and every command does it again, a second of
  # its start. Takes half a second where nothing changed.
  "$venv/bin/python" -m compileall -q "${sources[@]}" || :
  export PATH="$(cd "$venv" && pwd)/bin:$PATH" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
}
