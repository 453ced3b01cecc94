#!/usr/bin/env bash
# Builds the images, loads them into the running cluster (hack/kind/up.sh) and installs or upgrades the Helm chart.
#
#   hack/install.sh [HELM ARGUMENT...]     for example --values my-values.yaml
#
# VMDK_CSI_LOADED=TAG: the images of this tag are in the cluster already (hack/kind/up.sh was given them).
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

eval "$("$HACK_DIR/kind/env.sh" --print)"
"$HACK_DIR/tools/build.sh" helm
VERSION=$("$HACK_DIR/images.sh" --version)
if [ "$VERSION" != "${VMDK_CSI_LOADED:-}" ]; then
  mapfile -t images < <("$HACK_DIR/images.sh")
  "$HACK_DIR/kind/load.sh" "${images[@]}"
fi
# Without the capability no container can be given it; workers then go on without that wall.
if (((16#$(sed -n 's/^CapBnd:\s*//p' /proc/self/status) >> 24 & 1) == 0)); then
  info "this machine's root lacks CAP_SYS_RESOURCE: hostd.ioFlusher=false"
  set -- "$@" --set hostd.ioFlusher=false
fi
step "helm upgrade --install vmdk-csi charts/vmdk-csi"
helm upgrade --install vmdk-csi "$REPO_DIR/charts/vmdk-csi" --namespace vmdk-csi --create-namespace \
  --set-string image.tag="$VERSION" --wait --timeout 5m "$@" >/dev/null
kubectl -n vmdk-csi get pods -o wide >&2
