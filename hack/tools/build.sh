#!/usr/bin/env bash
# Builds the programs that tests and the kind cluster use, statically, from Go modules alone.
#
#   hack/tools/build.sh [GROUP...]      build the groups (default: all, in an order useful to somebody who waits)
#   hack/tools/build.sh --path GROUP    print the group's directory, built or not
#
# Groups: etcd k8s kind runtime helm sidecars upstream lint. Their modules are the directories beside this script: go.mod and go.sum
# are committed, so every machine builds the same sources. Results go to ${VMDK_CSI_CACHE:-/var/cache/vmdk-csi}/bin/GROUP-KEY;
# the key is a hash of the modules, the flags and the Go version that go.mod asks for (whoever asks for a path need not have
# Go), and a group that is there is not built again.
# shellcheck disable=SC2317,SC2086 # functions called by name; module paths without blanks
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
# shellcheck source=hack/lib/apt.sh
. "$HACK_DIR/lib/apt.sh"
# shellcheck source=hack/lib/go.sh
. "$HACK_DIR/lib/go.sh"

TOOLS_DIR=$HACK_DIR/tools
GROUPS_IN_ORDER=(etcd k8s kind runtime helm sidecars upstream lint)

declare -A MODULES=(
  [etcd]=etcd [k8s]=k8s [kind]=kind [runtime]="containerd runc cni crictl coredns" [helm]=helm [sidecars]="provisioner sidecars"
  [upstream]=upstream [lint]=lint
)

FLAGS="-buildvcs=false -trimpath"
SMALL="-s -w" # no symbol tables: the node image holds most of these
export GOFLAGS="$FLAGS -p=${VMDK_CSI_BUILD_JOBS:-2}" GOWORK=off CGO_ENABLED=0

group_path() {
  local m inputs=()
  for m in ${MODULES[$1]}; do inputs+=("$TOOLS_DIR/$m"); done
  # The function that builds the group is among what it is made of: it holds the packages, tags and linker flags.
  printf '%s\n' "$CACHE_DIR/bin/$1-$(hash_of "=$(grep '^go ' "$REPO_DIR/go.mod")" "=$FLAGS $SMALL" "=$(declare -f "build_$1")" "${inputs[@]}")"
}

# go_build MODULE OUTPUT ARG...
go_build() {
  local module=$1 out=$2
  shift 2
  info "$module"
  (cd "$TOOLS_DIR/$module" && go build -o "$out" "$@")
}

build_etcd() { go_build etcd "$1/etcd" -ldflags "$SMALL" go.etcd.io/etcd/server/v3; }

build_k8s() {
  local k=k8s.io/kubernetes/cmd version major minor flags=$SMALL p
  version=$(cd "$TOOLS_DIR/k8s" && go list -m -f '{{.Version}}' k8s.io/kubernetes)
  IFS=. read -r major minor _ <<<"${version#v}"
  # What upstream's build stamps in; kubeadm and the kubelet compare versions, so it must be there.
  for p in k8s.io/client-go/pkg/version k8s.io/component-base/version; do
    flags+=" -X $p.gitVersion=$version -X $p.gitMajor=$major -X $p.gitMinor=$minor -X $p.gitTreeState=clean"
  done
  go_build k8s "$1/" -ldflags "$flags" \
    $k/kube-apiserver $k/kube-controller-manager $k/kube-scheduler $k/kube-proxy $k/kubelet $k/kubeadm $k/kubectl
}

build_kind() { go_build kind "$1/kind" -ldflags "$SMALL" sigs.k8s.io/kind; }

build_runtime() {
  local containerd=github.com/containerd/containerd/v2 cni=github.com/containernetworking/plugins/plugins
  go_build containerd "$1/" -tags "no_btrfs no_zfs no_devmapper" -ldflags "$SMALL -X $containerd/version.Version=v2.4.2" \
    $containerd/cmd/containerd $containerd/cmd/containerd-shim-runc-v2 $containerd/cmd/ctr
  # runc enters namespaces in C, before the Go runtime starts threads.
  need_packages gcc libc6-dev libseccomp-dev pkg-config
  CGO_ENABLED=1 go_build runc "$1/runc" -tags "seccomp netgo osusergo" \
    -ldflags "$SMALL -extldflags -static -X main.version=1.5.2" github.com/opencontainers/runc
  mkdir "$1/cni"
  go_build cni "$1/cni/" -ldflags "$SMALL" \
    $cni/main/ptp $cni/main/bridge $cni/main/loopback $cni/ipam/host-local $cni/meta/portmap
  go_build crictl "$1/crictl" -ldflags "$SMALL" sigs.k8s.io/cri-tools/cmd/crictl
  go_build coredns "$1/coredns" -ldflags "$SMALL" .
}

build_helm() {
  go_build helm "$1/helm" -ldflags "$SMALL -X helm.sh/helm/v4/internal/version.version=v4.3.1" helm.sh/helm/v4/cmd/helm
}

build_sidecars() {
  local csi=github.com/kubernetes-csi
  # sidecar OUTPUT MODULE VERSION PACKAGE...
  sidecar() { go_build "$2" "$1/" -ldflags "$SMALL -X main.version=$3" "${@:4}"; }
  sidecar "$1" sidecars v4.13.0 $csi/external-attacher/v4/cmd/csi-attacher
  sidecar "$1" sidecars v2.3.0 $csi/external-resizer/v2/cmd/csi-resizer
  sidecar "$1" sidecars v8.7.0 $csi/external-snapshotter/v8/cmd/csi-snapshotter $csi/external-snapshotter/v8/cmd/snapshot-controller
  sidecar "$1" provisioner v6.3.0 $csi/external-provisioner/v6/cmd/csi-provisioner
}

# Kubernetes' external storage suite, the ginkgo that runs it in several processes, the program in its pods, and a node's ssh server.
build_upstream() {
  info upstream
  (cd "$TOOLS_DIR/upstream" && go test -c -o "$1/upstream.test" -ldflags "$SMALL" .)
  go_build upstream "$1/" -ldflags "$SMALL" github.com/onsi/ginkgo/v2/ginkgo k8s.io/kubernetes/test/images/agnhost ./nodessh
}

build_lint() {
  go_build lint "$1/golangci-lint" -ldflags "$SMALL" github.com/golangci/golangci-lint/v2/cmd/golangci-lint
}

check_group() { [ -n "${MODULES[$1]:-}" ] || die "no group '$1'; there are: ${GROUPS_IN_ORDER[*]}"; }

main() {
  local g dir
  if [ "${1:-}" = --path ]; then
    [ $# = 2 ] || die "usage: $0 --path GROUP"
    check_group "$2"
    group_path "$2"
    return
  fi
  if [ $# = 0 ]; then set -- "${GROUPS_IN_ORDER[@]}"; fi
  for g; do check_group "$g"; done
  for g; do
    dir=$(group_path "$g")
    if [ -d "$dir" ]; then continue; fi
    need_go
    step "building $g$([ "$g" != k8s ] || echo " (cold, a quarter of an hour on two cores)")"
    timed "$g" cache_fill "$dir" "build_$g"
  done
}

{ main "$@"; exit; } # in one piece: the file may be edited while it runs
