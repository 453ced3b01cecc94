# Sourced after common.sh. Container images without a registry and without a Docker build.
# shellcheck shell=bash

# A one-layer docker-archive is a tar of the layer, a config and a manifest; `docker load`, `ctr images import` and
# `kind load image-archive` take it. Under the very name that a pod asks for, nothing is pulled (IfNotPresent).

# image_archive OUT.tar DIRECTORY CONFIG_JSON NAME...: the same input makes the same bytes.
image_archive() {
  local out=$1 root=$2 config=$3 work digest
  shift 3
  work=$(mktemp -d "${out%/*}/image.XXXXXX")
  tar --sort=name --numeric-owner --owner=0 --group=0 --mtime=@0 -C "$root" -cf "$work/layer.tar" .
  digest=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
  jq -n --argjson config "$config" --arg digest "sha256:$digest" --arg arch "$(go env GOARCH)" '{
      architecture: $arch, os: "linux", created: "1970-01-01T00:00:00Z", config: $config,
      rootfs: {type: "layers", diff_ids: [$digest]},
      history: [{created: "1970-01-01T00:00:00Z", created_by: "hack/lib/image.sh"}]
    }' >"$work/config.json"
  jq -n '[{Config: "config.json", RepoTags: $ARGS.positional, Layers: ["layer.tar"]}]' --args "$@" >"$work/manifest.json"
  tar --numeric-owner --owner=0 --group=0 --mtime=@0 -C "$work" -cf "$out.part" manifest.json config.json layer.tar
  rm -rf "$work"
  mv "$out.part" "$out"
}

# copy_programs ROOTFS DESTINATION FILE...: files of a Debian root file system (absolute paths in it) with the libraries
# they need, into a tree with merged /usr like Debian's own.
copy_programs() {
  local rootfs=$1 to=$2 f d
  shift 2
  mkdir -p "$to"/usr/{bin,sbin,lib,lib64} "$to"/{etc,tmp,run,var,proc,sys,dev,root,mnt}
  chmod 1777 "$to/tmp"
  for d in bin sbin lib lib64; do ln -sfn "usr/$d" "$to/$d"; done
  for f; do
    mkdir -p "$to/$(dirname "$f")"
    cp -a --remove-destination "$rootfs$f" "$to$f" # not through a symlink that is already there
  done
  # ldd in the root file system itself, so that its libraries are meant and not this machine's.
  for f; do [ -L "$rootfs$f" ] || chroot "$rootfs" ldd "$f" 2>/dev/null | grep -oE '/[^ ]+' || true; done | sort -u |
    while read -r f; do
      f=$(chroot "$rootfs" readlink -f "$(dirname "$f")")/$(basename "$f")
      mkdir -p "$to/$(dirname "$f")"
      [ -e "$to$f" ] || cp -L "$rootfs$f" "$to$f"
    done
}

# busybox_tree ROOTFS DESTINATION: Debian's static busybox with its applets, dash as sh and our own sync. Its wget and nc crash
# when they are given a name to look up (a static glibc); nslookup works, and they take addresses.
busybox_tree() {
  local rootfs=$1 to=$2 applet
  # busybox's shell runs its built-in sync whatever is in PATH, and that one flushes every file system of the machine; hence dash.
  copy_programs "$rootfs" "$to" /usr/bin/busybox /usr/bin/dash
  for applet in $("$to/usr/bin/busybox" --list); do
    [ "$applet" = busybox ] || ln -sf busybox "$to/usr/bin/$applet"
  done
  rm "$to/usr/bin/sync"
  (cd "$HACK_DIR/images/sync" && CGO_ENABLED=0 GOFLAGS=-buildvcs=false GOWORK=off go build -trimpath -ldflags "-s -w" -o "$to/usr/bin/sync" .)
  ln -sf dash "$to/usr/bin/sh"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n' >"$to/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$to/etc/group"
  # Every database by name: glibc's defaults name modules to load (nss_db), and in a static program that ends in a crash.
  printf '%s: files\n' passwd group shadow services protocols networks ethers rpc >"$to/etc/nsswitch.conf"
  echo 'hosts: files dns' >>"$to/etc/nsswitch.conf"
}
