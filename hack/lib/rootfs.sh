# Sourced after common.sh and apt.sh. One Debian root file system, of which the node image and the images with Debian programs are made.
# shellcheck shell=bash disable=SC2034

# Bookworm: its systemd 252 is the last that also starts on cgroup v1. The packages are those of kind's own base image plus
# what the project's images take from Debian (fdisk: sfdisk; busybox-static: a shell with everything in one file).
ROOTFS_SUITE=bookworm
ROOTFS_PACKAGES=(
  systemd systemd-sysv dbus
  conntrack iptables nftables iproute2 ethtool util-linux mount kmod libseccomp2 pigz
  bash ca-certificates curl jq procps socat
  e2fsprogs xfsprogs btrfs-progs fdisk busybox-static
)
ROOTFS_MIRROR=${VMDK_CSI_DEBIAN_MIRROR:-http://deb.debian.org/debian}

rootfs_path() { printf '%s\n' "$CACHE_DIR/rootfs-$(hash_of "=$ROOTFS_SUITE" "=${ROOTFS_PACKAGES[*]}")"; }

rootfs_make() {
  need_packages debootstrap
  cache_fill "$(rootfs_path)" rootfs_fill
}

rootfs_fill() {
  local packages
  step "Debian $ROOTFS_SUITE root file system (debootstrap)"
  packages=$(IFS=,; echo "${ROOTFS_PACKAGES[*]}")
  # debootstrap reports errors on standard output, into the log.
  debootstrap --variant=minbase --include="$packages" "$ROOTFS_SUITE" "$1" "$ROOTFS_MIRROR" >"$1.log" 2>&1 ||
    { tail -20 "$1.log" >&2; die "debootstrap failed; its log: $1.log"; }
  rm -f "$1.log"
  rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/* "$1"/usr/share/{doc,man,locale,info}
}
