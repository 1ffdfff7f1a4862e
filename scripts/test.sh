#!/usr/bin/env bash
# Runs every check and test of the project in an environment that it makes itself. Further arguments go to pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

browser() {
  [ -z "$(command -v chromium chromium-browser google-chrome)" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
  echo "==> installing Debian's chromium, in which the tests open the page of a report (without it they are skipped)"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 ||
    echo "chromium cannot be installed here; the tests that need it are skipped"
}

# What uses one core runs beside other things, the types beside the first tests.
browser &
installed=$!
prepare_environment $(dependency_group test)

echo "==> ruff, mypy, import-linter"
ruff format --check --quiet . || { echo "run: ruff format ." >&2; exit 1; }
ruff check --quiet .
mypy &
typed=$!
lint-imports --no-logo

echo "==> preparing the model, data, tokenizers and templates for the tests"
python scripts/assets.py data tokenizers >/dev/null
wait "$installed"

echo "==> pytest"
# Two workers, a test file on one of them, one thread each: for the two cores of a small machine. In which order: conftest.py. Byte code
# is written, also where the environment forbids it: each worker and each pytest that a test starts would rewrite all asserts itself.
status=0
env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q "$@" || status=$?
wait "$typed" || status=$?
exit "$status"
