#!/usr/bin/env bash
# Makes container images without a registry and without a Docker build: docker-archives that hack/kind/load.sh, `docker load`
# and `ctr images import` take.
#
#   hack/images/build.sh [NAME...]      make the images (default: the project's own) and print their files
#   hack/images/build.sh --path NAME... the same; kept apart for scripts that want to say what they mean
#
#   vmdk-csi-controller vmdk-hostd      one static program and the CA certificates
#   vmdk-csi-node                       the program and Debian's tools for partitions, ext4, XFS and btrfs
#   busybox                             docker.io/library/busybox:1.37, for examples and tests
#   csi-sidecars                        the Kubernetes CSI sidecars under registry.k8s.io/sig-storage
#   upstream-tests                      stand-ins for the images of Kubernetes' storage tests, under their names and tags
#
# VERSION (default dev) is the tag of the project's images. Files: ${VMDK_CSI_CACHE:-/var/cache/vmdk-csi}/images/NAME-KEY/.
# shellcheck disable=SC2317 # functions called by name
set -euo pipefail
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

VERSION=${VERSION:-dev}
REGISTRY=${REGISTRY:-ghcr.io/vmdk-csi}
PROJECT_IMAGES=(vmdk-csi-controller vmdk-hostd vmdk-csi-node)
# SOURCE_DIR is where ./cmd/NAME is; another one serves to try this script.
SOURCE_DIR=${SOURCE_DIR:-$REPO_DIR}

declare -A SIDECARS=(
  [csi-provisioner]=v6.3.0 [csi-attacher]=v4.13.0 [csi-resizer]=v2.3.0 [csi-snapshotter]=v8.7.0 [snapshot-controller]=v8.7.0
)

# What vmdk-csi-node calls, and what a person wants who looks into its container. The Dockerfile reads the same file.
mapfile -t NODE_PROGRAMS < <(grep -v '^#' "$HACK_DIR/images/node-programs")

# --- one function for each sort of image: make_SORT DIRECTORY NAME ------------------------------------------------------
# Each is called by cache_fill and leaves DIRECTORY/NAME.tar.

make_program_image() {
  local dir=$1 name=$2 root=$1/root
  program_tree "$root" "$name"
  program_archive "$dir" "$name"
}

make_node_image() {
  local dir=$1 name=$2 root=$1/root
  busybox_tree "$(rootfs_path)" "$root"
  # Debian's programs replace busybox's of the same name.
  copy_programs "$(rootfs_path)" "$root" "${NODE_PROGRAMS[@]}"
  program_tree "$root" "$name"
  program_archive "$dir" "$name"
}

make_busybox_image() {
  busybox_tree "$(rootfs_path)" "$1/root"
  image_archive "$1/$2.tar" "$1/root" '{"Cmd": ["sh"], "Env": ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"]}' docker.io/library/busybox:1.37
}

make_sidecar_image() {
  install -D -m 755 "$("$HACK_DIR/tools/build.sh" --path sidecars)/$2" "$1/root/$2"
  image_archive "$1/$2.tar" "$1/root" "{\"Entrypoint\": [\"/$2\"]}" "registry.k8s.io/sig-storage/$2:${SIDECARS[$2]}"
}

# The tests of storage want a shell with the usual programs: busybox where upstream has busybox, nginx, Alpine or Debian. Their
# scripts use "let", which dash does not know, and dd oflag=nocache, which busybox does not know; and with the pod's PATH they
# look for a node's crictl.
upstream_tree() {
  busybox_tree "$(rootfs_path)" "$1"
  copy_programs "$(rootfs_path)" "$1" /usr/bin/bash /usr/bin/dd
  ln -sf bash "$1/usr/bin/sh"
}
make_upstream_shell_image() {
  upstream_tree "$1/root"
  # shellcheck disable=SC2046 # one name a line
  image_archive "$1/$2.tar" "$1/root" '{"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}' $(upstream_names busybox nginx glibc-dns-testing)
}
make_upstream_agnhost_image() {
  upstream_tree "$1/root"
  install -m 755 "$("$HACK_DIR/tools/build.sh" --path upstream)/agnhost" "$1/root/agnhost"
  # shellcheck disable=SC2046 # one name a line
  image_archive "$1/$2.tar" "$1/root" '{"Entrypoint": ["/agnhost"], "Cmd": ["pause"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}' \
    $(upstream_names agnhost)
}
# upstream_names NAME...: what the test binary itself would ask for.
upstream_names() {
  local n
  for n; do
    "$("$HACK_DIR/tools/build.sh" --path upstream)/upstream.test" -list-images -repo-root / 2>/dev/null | grep "^registry.k8s.io/e2e-test-images/$n:" | sort ||
      die "the tests know no image $n"
  done
}

program_tree() { # ROOT NAME
  mkdir -p "$1/tmp" "$1/etc/ssl/certs"
  chmod 1777 "$1/tmp"
  install -D -m 755 "$PROGRAMS/$2" "$1/usr/local/bin/$2"
  cp "$(rootfs_path)/etc/ssl/certs/ca-certificates.crt" "$1/etc/ssl/certs/"
}
program_archive() { # DIRECTORY NAME
  image_archive "$1/$2.tar" "$1/root" \
    "{\"Entrypoint\": [\"/usr/local/bin/$2\"], \"Env\": [\"PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"]}" "$REGISTRY/$2:$VERSION"
}

# --- keys -------------------------------------------------------------------------------------------------------------
# image SORT NAME INPUT...: makes $CACHE_DIR/images/NAME-KEY/NAME.tar unless it is there, and prints its path.
image() {
  local sort=$1 name=$2 dir
  shift 2
  dir=$CACHE_DIR/images/$name-$(hash_of "=$VERSION $REGISTRY" "=${NODE_PROGRAMS[*]}" "$HACK_DIR/images/sync" \
    "=$(declare -f "make_${sort}_image" program_tree program_archive image_archive copy_programs busybox_tree upstream_tree)" "$@")
  if [ ! -d "$dir" ]; then
    step "image $name"
    cache_fill "$dir" fill_image "$sort" "$name"
    forget_old "$name" "$dir"
  fi
  printf '%s\n' "$dir/$name.tar"
}
fill_image() { # DIRECTORY SORT NAME
  "make_$2_image" "$1" "$3"
  rm -rf "$1/root"
}

# Every change of the sources makes new files: keep the last three of a name.
forget_old() { # NAME DIRECTORY
  local old
  touch "$2"
  find "$CACHE_DIR/images" -maxdepth 1 -type d -name "$1-????????????????" -printf '%T@ %p\n' | sort -rn | sed 1,3d | cut -d' ' -f2- |
    while read -r old; do rm -rf "$old" "$old.lock"; done
}

# build_program NAME: into $PROGRAMS. The build is run every time (Go's own cache makes that quick), the image is keyed by its result.
build_program() {
  [ -d "$SOURCE_DIR/cmd/$1" ] || die "there is no $SOURCE_DIR/cmd/$1"
  (cd "$SOURCE_DIR" && CGO_ENABLED=0 go build -buildvcs=false -trimpath -ldflags "-s -w -X main.version=$VERSION" -o "$PROGRAMS/$1" "./cmd/$1")
}

main() {
  local name s
  if [ "${1:-}" = --path ]; then shift; fi
  if [ $# = 0 ]; then set -- "${PROJECT_IMAGES[@]}"; fi
  need_packages jq
  need_go
  PROGRAMS=$(mktemp -d)
  trap 'rm -rf "$PROGRAMS"' EXIT
  for name; do
    case $name in
      vmdk-csi-controller | vmdk-hostd | vmdk-csi-node)
        rootfs_make
        build_program "$name"
        if [ "$name" = vmdk-csi-node ]; then image node "$name" "$PROGRAMS/$name"; else image program "$name" "$PROGRAMS/$name"; fi
        ;;
      busybox)
        rootfs_make
        image busybox busybox "=$(rootfs_path)"
        ;;
      csi-sidecars)
        "$HACK_DIR/tools/build.sh" sidecars
        for s in "${!SIDECARS[@]}"; do
          image sidecar "$s" "=${SIDECARS[$s]}" "=$("$HACK_DIR/tools/build.sh" --path sidecars)"
        done
        ;;
      upstream-tests)
        rootfs_make
        "$HACK_DIR/tools/build.sh" upstream
        for s in shell agnhost; do
          image "upstream_$s" "upstream-$s" "=$(rootfs_path)" "=$("$HACK_DIR/tools/build.sh" --path upstream)"
        done
        ;;
      *) die "no image '$name'; there are: ${PROJECT_IMAGES[*]} busybox csi-sidecars upstream-tests" ;;
    esac
  done
}

{ main "$@"; exit; } # in one piece: the file may be edited while it runs
