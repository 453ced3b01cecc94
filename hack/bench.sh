#!/usr/bin/env bash
# Measures snapshots, restores and consolidation beside their peers and prints one table. Arguments go to the program: `-help`.
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=hack/lib/apt.sh
. "$HACK_DIR/lib/apt.sh"
# shellcheck source=hack/lib/go.sh
. "$HACK_DIR/lib/go.sh"

command -v qemu-img >/dev/null || need_packages qemu-utils
need_go
cd "$REPO_DIR"
mkdir -p "$CACHE_DIR/bin"
# Without cgo, as the product is built: a worker's walls need that.
CGO_ENABLED=0 go build -o "$CACHE_DIR/bin/bench" ./hack/bench
exec "$CACHE_DIR/bin/bench" "$@"
