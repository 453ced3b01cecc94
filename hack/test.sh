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
VMDK_CSI_TGT=$CACHE_DIR/tgt-1
if [ ! -x "$VMDK_CSI_TGT/usr/sbin/tgtd" ]; then
  # An iSCSI target for the tests of pkg/san. Unpacked, not installed: the package would start a service.
  rm -rf "$VMDK_CSI_TGT.new"
  mkdir -p "$VMDK_CSI_TGT.new"
  unpack_packages "$VMDK_CSI_TGT.new" tgt libaio1 libibverbs1 librdmacm1 libnl-3-200 libnl-route-3-200
  rm -rf "$VMDK_CSI_TGT"
  mv "$VMDK_CSI_TGT.new" "$VMDK_CSI_TGT"
fi
# The machine of test/guest. Without QEMU for this processor, or Debian's kernel for it, its tests say why they are skipped.
VMDK_CSI_GUEST=
if [ "$(uname -m)" = x86_64 ]; then VMDK_CSI_GUEST=$("$HACK_DIR/guest.sh"); fi
export VMDK_CSI_GUEST VMDK_CSI_TGT VMDK_CSI_KUBE_BIN VMDK_CSI_ETCD_BIN VMDK_CSI_HELM_BIN
mkdir -p "$CACHE_DIR/bin"
go build -o "$CACHE_DIR/bin/suite" ./hack/suite
exec "$CACHE_DIR/bin/suite" "$@"
