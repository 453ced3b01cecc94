#!/usr/bin/env bash
# The environment of the running cluster: DOCKER_HOST (with a private engine), KUBECONFIG, and kubectl, kind and helm in PATH.
#
#   . hack/kind/env.sh                 sets them in this shell (bash or zsh)
#   hack/kind/env.sh --print           prints them as export lines

# Sourced, only the line with eval runs: no option and no function of ours stays in the caller's shell.
if [ "${1:-}" = --print ] && [ "${0##*/}" = env.sh ]; then
  set -euo pipefail
  # shellcheck source=hack/kind/settings.sh
  . "$(dirname "${BASH_SOURCE[0]}")/settings.sh"
  use_machine "$(recorded_machine)"
  if [ -n "${DOCKER_HOST:-}" ]; then printf 'export DOCKER_HOST=%q\n' "$DOCKER_HOST"; fi
  printf 'export KUBECONFIG=%q\nexport PATH=%q\n' "$KUBECONFIG" "$PATH"
else
  # shellcheck disable=SC2296,SC2298 # zsh's name of the sourced file
  eval "$("$(dirname "${BASH_SOURCE[0]:-${(%):-%x}}")/env.sh" --print)"
fi
