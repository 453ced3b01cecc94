# Sourced after settings.sh. Loop devices belong to the machine, not to the node that attached them.
# shellcheck shell=bash

# release_loops: detaches the loop devices over files of our nodes. The path that the kernel reports was resolved in a mount
# namespace that may be gone, so files are told by device and inode.
release_loops() {
  local loop inode device dir dirs=()
  command -v losetup >/dev/null || return 0
  for dir in "$SHARED_DIR" "$STATE_DIR"/"$CLUSTER"-* "$ENGINE_DIR/docker/volumes"; do
    if [ -d "$dir" ]; then dirs+=("$dir"); fi
  done
  if [ ${#dirs[@]} = 0 ]; then return 0; fi
  while read -r loop inode device; do
    if [ -z "$device" ] || [ "$device" != "$(mountpoint -d "$(stat -c %m "${dirs[0]}")" 2>/dev/null)" ]; then continue; fi
    if [ -n "$(find "${dirs[@]}" -xdev -inum "$inode" -print -quit 2>/dev/null)" ]; then
      info "detaching $loop, left behind by a node"
      losetup -d "$loop" || warn "$loop stays attached"
    fi
  done < <(losetup --list --noheadings --raw -O NAME,BACK-INO,BACK-MAJ:MIN)
}
