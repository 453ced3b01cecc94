#!/usr/bin/env bash
# Sets the machine up and runs the test suites (hack/suite): all of them, or those named.
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=hack/lib/apt.sh
. "$HACK_DIR/lib/apt.sh"
# shellcheck source=hack/lib/go.sh
. "$HACK_DIR/lib/go.sh"

"$HACK_DIR/setup.sh"
need_go
cd "$REPO_DIR"
VMDK_CSI_KUBE_BIN=$("$HACK_DIR/tools/build.sh" --path k8s)
VMDK_CSI_ETCD_BIN=$("$HACK_DIR/tools/build.sh" --path etcd)
VMDK_CSI_HELM_BIN=$("$HACK_DIR/tools/build.sh" --path helm)
export VMDK_CSI_KUBE_BIN VMDK_CSI_ETCD_BIN VMDK_CSI_HELM_BIN
mkdir -p "$CACHE_DIR/bin"
go build -o "$CACHE_DIR/bin/suite" ./hack/suite
exec "$CACHE_DIR/bin/suite" "$@"
