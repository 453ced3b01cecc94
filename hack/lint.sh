#!/usr/bin/env bash
# golangci-lint with .golangci.yml, built from its Go module. Arguments go to `golangci-lint run`.
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
"$HACK_DIR/tools/build.sh" lint
cd "$REPO_DIR"
exec "$("$HACK_DIR/tools/build.sh" --path lint)/golangci-lint" run --timeout 15m "$@" ./...
