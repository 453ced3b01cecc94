# Sourced by the scripts of this directory: names, places and addresses. Everything here can be set from the environment.
# shellcheck shell=bash disable=SC2034

# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/common.sh"
# shellcheck source=hack/lib/apt.sh
. "$HACK_DIR/lib/apt.sh"
# shellcheck source=hack/lib/go.sh
. "$HACK_DIR/lib/go.sh"
# shellcheck source=hack/lib/rootfs.sh
. "$HACK_DIR/lib/rootfs.sh"
# shellcheck source=hack/lib/image.sh
. "$HACK_DIR/lib/image.sh"

KIND_DIR=$HACK_DIR/kind
CLUSTER=${CLUSTER:-vmdk-csi}
KUBERNETES_VERSION=v1.37.2
WORKERS=${WORKERS:-2}

# What a running cluster writes. The directories that the nodes mount are here too, so that the machine can look at the files.
STATE_DIR=${VMDK_CSI_STATE:-/var/lib/vmdk-csi-kind}
SHARED_DIR=${VMDK_CSI_SHARED:-$STATE_DIR/shared}
KUBECONFIG_FILE=$STATE_DIR/$CLUSTER.kubeconfig

# The private engine (a machine that has none). One engine serves every CLUSTER.
ENGINE_DIR=$STATE_DIR/engine
ENGINE_NAME=${VMDK_CSI_ENGINE_NAME:-vmdkcsi}         # of its cgroups, host name and veth (whose names end at 15 characters)
ENGINE_HOST_IP=${VMDK_CSI_ENGINE_HOST_IP:-10.98.0.1} # this machine's end of the veth pair, a /30
ENGINE_IP=${VMDK_CSI_ENGINE_IP:-10.98.0.2}           # the engine's end: the API server is reached here
ENGINE_SOCKET=$ENGINE_DIR/docker.sock
# Its images stay with the caches: loading the node image anew costs a third of a cluster's start.
ENGINE_STORE=$CACHE_DIR/images-of-$ENGINE_NAME
API_PORT=${API_PORT:-6443}

node_names() {
  local i
  echo "$CLUSTER-control-plane"
  for ((i = 1; i <= WORKERS; i++)); do
    # kind numbers workers from the second on.
    if [ "$i" = 1 ]; then echo "$CLUSTER-worker"; else echo "$CLUSTER-worker$i"; fi
  done
}

# --- sort of machine ------------------------------------------------------------------------------------------------
STOCK_IMAGE=${VMDK_CSI_NODE_IMAGE:-kindest/node:$KUBERNETES_VERSION}

docker_answers() { [ -n "$(timeout 10 docker version --format '{{.Server.Version}}' 2>/dev/null)" ]; }

# machine_sort: prints stock (an engine and a registry), engine (an engine only) or private (no engine).
machine_sort() {
  if [ -n "${VMDK_CSI_MACHINE:-}" ]; then
    case $VMDK_CSI_MACHINE in
      stock | engine | private) echo "$VMDK_CSI_MACHINE" ;;
      *) die "VMDK_CSI_MACHINE is '$VMDK_CSI_MACHINE'; it can be stock, engine or private" ;;
    esac
  elif process_alive "$ENGINE_DIR/init"; then
    echo private
  elif ! command -v docker >/dev/null || ! docker_answers; then
    # The client alone proves nothing: only a server's answer does.
    echo private
  elif docker image inspect "$STOCK_IMAGE" >/dev/null 2>&1 || timeout 300 docker pull -q "$STOCK_IMAGE" >/dev/null 2>&1; then
    echo stock
  else
    echo engine
  fi
}

# up.sh records what it found, so that the other scripts need not try to pull again.
MACHINE_FILE=$STATE_DIR/machine
recorded_machine() { cat "$MACHINE_FILE" 2>/dev/null || die "no cluster has been started here; run hack/kind/up.sh"; }

describe_machine() {
  case $1 in
    stock) echo "a Docker Engine and a registry: stock node image" ;;
    engine) echo "a Docker Engine, no registry: node image from Go modules and Debian packages" ;;
    private) echo "no Docker Engine: a private one from Debian's docker.io, in its own namespaces" ;;
  esac
}

# use_machine SORT: sets what docker, kind and kubectl are and where they find engine and cluster.
use_machine() {
  local tools=$HACK_DIR/tools/build.sh
  PATH=$("$tools" --path kind):$("$tools" --path k8s):$("$tools" --path helm):$PATH
  if [ "$1" = private ]; then
    export DOCKER_HOST=unix://$ENGINE_SOCKET
    PATH=$(engine_packages_path)/usr/bin:$PATH
  fi
  export PATH KUBECONFIG=$KUBECONFIG_FILE
}

# --- files of Debian's docker.io, unpacked ----------------------------------------------------------------------------
ENGINE_PACKAGES=(docker.io containerd runc tini)
engine_packages_path() { printf '%s\n' "$CACHE_DIR/engine-$(hash_of "=${ENGINE_PACKAGES[*]}")"; }
