#!/usr/bin/env bash
# Runs every fuzz target of the tree, each for FUZZTIME (default 60s). What it finds is kept in the package's testdata/fuzz, and
# is a test case from then on. Arguments are names of targets, to run only these.
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=hack/lib/apt.sh
. "$HACK_DIR/lib/apt.sh"
# shellcheck source=hack/lib/go.sh
. "$HACK_DIR/lib/go.sh"
need_go
cd "$REPO_DIR"
time=${FUZZTIME:-60s}
ran=0
while read -r pkg target; do
  if [ $# -gt 0 ] && ! printf '%s\n' "$@" | grep -qx "$target"; then
    continue
  fi
  step "$target in $pkg for $time"
  # The targets of the engine fail when their process ever takes more than 256 MiB (pkg/vmdk/vmdktest); garbage is collected before.
  GOMEMLIMIT=128MiB go test "$pkg" -run '^$' -fuzz "^$target\$" -fuzztime "$time"
  ran=$((ran + 1))
done < <(grep -rhoH --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' cmd pkg internal test hack |
  sed -E 's|^(.*)/[^/]*:func (.*)|./\1 \2|' | sort)
[ "$ran" -gt 0 ] || { echo "no such fuzz target: $*" >&2; exit 1; }
echo "$ran fuzz targets ran for $time each, and found nothing"
