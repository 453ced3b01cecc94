# Sourced after settings.sh. Loop devices belong to the machine, not to the node that attached them.
# shellcheck shell=bash

# release_loops: detaches the loop devices of nodes that are gone.
release_loops() {
  command -v losetup >/dev/null || return 0
  release_disks
  release_files
}

# release_disks: devices over the driver's disks, whose files are called /ID@TAG; the tag is made of the node's name
# (internal/cli/csi/devices.go). The kubelet puts a second loop device over one that a pod uses as a block device.
release_disks() {
  local node tag f loop upper
  for node in $(node_names); do
    tag=$(printf '%s' "$node" | sha256sum | cut -c1-8)
    for f in /sys/block/loop*/loop/backing_file; do
      [[ $(cat "$f" 2>/dev/null) == /vd-*@"$tag" ]] || continue
      loop=/dev/$(basename "${f%/loop/backing_file}")
      for upper in $(devices_over "$loop"); do detach "$upper"; done
      detach "$loop"
    done
  done
}

# devices_over: the loop devices over a loop device. The path that the kernel reports of it is that of a mount namespace, and
# "/" when that is gone; its inode stays.
devices_over() {
  losetup --list --noheadings -O NAME,BACK-FILE,BACK-INO,BACK-MAJ:MIN |
    awk -v l="$1" -v i="$(stat -c %i "$1")" -v d="$(mountpoint -d /dev)" '$2 == l || $3 == i && $4 == d { print $1 }'
}

# release_files: devices over files of our nodes. The path that the kernel reports was resolved in a mount namespace that may
# be gone, so files are told by device and inode.
release_files() {
  local loop inode device dir dirs=()
  for dir in "$SHARED_DIR" $(node_names | sed "s#^#$STATE_DIR/#") "$ENGINE_STORE/docker/volumes"; do
    if [ -d "$dir" ]; then dirs+=("$dir"); fi
  done
  if [ ${#dirs[@]} = 0 ]; then return 0; fi
  while read -r loop inode device; do
    if [ -z "$device" ] || [ "$device" != "$(mountpoint -d "$(stat -c %m "${dirs[0]}")" 2>/dev/null)" ]; then continue; fi
    if [ -n "$(find "${dirs[@]}" -xdev -inum "$inode" -print -quit 2>/dev/null)" ]; then detach "$loop"; fi
  done < <(losetup --list --noheadings -O NAME,BACK-INO,BACK-MAJ:MIN)
}

detach() {
  info "detaching $1, left behind by a node"
  losetup -d "$1" 2>/dev/null || [ ! -e "/sys/block/$(basename "$1")/loop/backing_file" ] || warn "$1 stays attached"
}
