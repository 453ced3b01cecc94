#!/usr/bin/env bash
# Builds the images, loads them into the running cluster (hack/kind/up.sh) and installs or upgrades the Helm chart.
#
#   hack/install.sh [HELM ARGUMENT...]     for example --values my-values.yaml
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

eval "$("$HACK_DIR/kind/env.sh" --print)"
"$HACK_DIR/tools/build.sh" helm
# The tag says what the images are made of, so that an upgrade rolls exactly when something changed.
VERSION=dev-$(hash_of "$REPO_DIR"/{cmd,pkg,internal,go.mod,go.sum} "$HACK_DIR/images")
export VERSION
step "building images $VERSION"
mapfile -t images < <("$HACK_DIR/images/build.sh" vmdk-csi-controller vmdk-csi-node vmdk-hostd)
loaded=$(kubectl get nodes -o jsonpath='{.items[*].status.images[*].names[*]}')
if [[ $loaded == *":$VERSION "* && $(grep -o "vmdk-hostd:$VERSION" <<<"$loaded" | wc -l) -ge 2 ]]; then
  info "the nodes have them already"
else
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
