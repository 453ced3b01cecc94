#!/usr/bin/env bash
# The virtual machine of test/guest: prints a directory with Debian's kernel (vmlinuz), the kernel modules in the order in which
# they are loaded (modules) and a root file system (root). They are made when they are missing.
set -euo pipefail
# shellcheck source=hack/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=hack/lib/apt.sh
. "$HACK_DIR/lib/apt.sh"
# shellcheck source=hack/lib/image.sh
. "$HACK_DIR/lib/image.sh"

# Generic parts that the kernel asks modprobe for by an alias come first: in the guest there is no modprobe.
MODULES=(crc32c_generic crct10dif_generic virtio_pci virtio_console virtio_blk virtio_scsi vmw_pvscsi sym53c8xx sd_mod dm_mod dm_zero ext4 xfs)
PROGRAMS=(/usr/bin/mount /usr/sbin/{blkid,mke2fs,mkfs.ext4,e2fsck,resize2fs,mkfs.xfs,xfs_growfs})
FILES=(/etc/mke2fs.conf)

guest_fill() {
  local to=$1 kernel=$2 debs m
  step "the test guest: Debian's kernel $kernel and this machine's file system tools"
  debs=$(mktemp -d "$to/debs.XXXXXX")
  unpack_packages "$debs" "$kernel"
  mv "$debs"/boot/vmlinuz-* "$to/vmlinuz"
  copy_programs / "$to/root" "${PROGRAMS[@]}"
  cp "${FILES[@]}" "$to/root/etc/"
  mkdir "$to/root/modules"
  : >"$to/modules"
  for m in "${MODULES[@]}"; do module_add "$debs/lib/modules" "$to" "$m"; done
  rm -rf "$debs"
}

# module_add TREE TO NAME: the module after what it depends on, each once.
module_add() {
  local tree=$1 to=$2 name=$3 file d
  if grep -qx "$name" "$to/modules"; then return 0; fi
  file=$(find "$tree" -name "${name//_/[_-]}.ko" -print -quit)
  if [ -z "$file" ]; then
    # Some are built into some kernels.
    if grep -q "/${name//_/[_-]}\.ko$" "$tree"/*/modules.builtin; then return 0; fi
    die "the kernel has no module $name"
  fi
  for d in $(tr '\0' '\n' <"$file" | sed -n 's/^depends=//p' | tr , ' '); do module_add "$tree" "$to" "$d"; done
  cp "$file" "$to/root/modules/$name.ko"
  echo "$name" >>"$to/modules"
}

need_root
need_packages util-linux e2fsprogs xfsprogs
apt_locked apt_update
kernel=$(apt-cache depends --important linux-image-amd64 | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -1)
[ -n "$kernel" ] || die "apt knows no Debian kernel (package linux-image-amd64)"
# A machine that is up to date always has the same; the rest of the key is what the tree is made of.
dir=$CACHE_DIR/guest-$(hash_of "=$kernel" "=$(apt-cache policy "$kernel" | sed -n 's/^ *Candidate: //p')" \
  "=$(dpkg-query -W -f '${Package} ${Version}\n' util-linux e2fsprogs xfsprogs libc6)" "$HACK_DIR/guest.sh" "$HACK_DIR/lib/image.sh")
cache_fill "$dir" guest_fill "$kernel" >&2
printf '%s\n' "$dir"
