#!/usr/bin/env bash
# Builds the four programs, static, into bin/ (or the directory given).
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=hack/lib/apt.sh
. "$HACK_DIR/lib/apt.sh"
# shellcheck source=hack/lib/go.sh
. "$HACK_DIR/lib/go.sh"
need_go
cd "$REPO_DIR"
out=${1:-bin}
mkdir -p "$out"
CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$out/" ./cmd/...
info "built $(cd "$out" && echo vmdk*)"
