#!/usr/bin/env bash
# Writes the one-digit sums of the GRPO recipes into .cache/tasks: an evaluation set, a training set without any of its
# questions, and the training set with shuffled answers. Needs an environment with slime and reasoning-gym.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tasks=.cache/tasks
sums=(chain_sum --set min_terms=2 max_terms=2 min_digits=1 max_digits=1)
mkdir -p "$tasks"
slime tasks "${sums[@]}" --size 80 --seed 1 --output "$tasks/chain_sum_eval.jsonl"
slime tasks "${sums[@]}" --size 100 --seed 2 --exclude "$tasks/chain_sum_eval.jsonl" --output "$tasks/chain_sum_train.jsonl"
slime tasks "${sums[@]}" --size 100 --seed 2 --exclude "$tasks/chain_sum_eval.jsonl" --shuffle-labels \
  --output "$tasks/chain_sum_shuffled.jsonl"
