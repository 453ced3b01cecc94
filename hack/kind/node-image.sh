# Sourced after settings.sh. Makes the node image of kind without a registry: what kind's images/base/Dockerfile and
# `kind build node-image` put together, from a Debian root file system, kind's own files (its Go module) and static programs.
# shellcheck shell=bash

NODE_IMAGE_GROUPS=(etcd k8s kind runtime sidecars)

node_image_path() {
  local g inputs=()
  for g in "${NODE_IMAGE_GROUPS[@]}"; do inputs+=("=$("$HACK_DIR/tools/build.sh" --path "$g")"); done
  # Functions, not files: a changed comment must not cost everybody's cluster.
  printf '%s\n' "$CACHE_DIR/node-image-$(hash_of "${inputs[@]}" "=$(rootfs_path)" "$KIND_DIR/node" "=$(grep -A1 '^declare -A SIDECARS' "$HACK_DIR/images/build.sh")" \
    "=$(declare -f node_image_fill node_root node_control_plane_images node_import_images image_archive copy_programs)")"
}
node_image_name() { printf 'vmdk-csi/node:%s\n' "$(basename "$(node_image_path)" | sed 's/^node-image-//')"; }

# node_image_load: the image is in the engine afterwards, made only if neither the engine nor the cache has it.
node_image_load() {
  local name
  name=$(node_image_name)
  if docker image inspect "$name" >/dev/null 2>&1; then return 0; fi
  "$HACK_DIR/tools/build.sh" "${NODE_IMAGE_GROUPS[@]}"
  need_go
  rootfs_make
  need_packages jq gcc libc6-dev
  cache_fill "$(node_image_path)" node_image_fill "$name"
  timed "docker load" docker load -qi "$(node_image_path)/node.tar"
  # Those of earlier versions; one that a cluster uses stays.
  docker images --format '{{.Repository}}:{{.Tag}}' vmdk-csi/node | grep -vxF "$name" | xargs -r docker image rm >/dev/null 2>&1 || true
}

# node_image_fill DIRECTORY NAME
node_image_fill() {
  local out=$1 name=$2 work=$1/work g
  step "node image $name"
  mkdir "$work" "$work/bin" "$work/images"
  # One directory with every program, so that what follows need not know which group has it.
  for g in "${NODE_IMAGE_GROUPS[@]}"; do cp -as "$("$HACK_DIR/tools/build.sh" --path "$g")"/. "$work/bin/"; done
  timed "root file system" node_root "$work/root" "$work/bin"
  timed "control plane images" node_control_plane_images "$work"
  # What every cluster here runs beside the control plane: loading it into each node later costs more than half of its start.
  "$HACK_DIR/images/build.sh" busybox csi-sidecars | xargs -I{} ln -s {} "$work/images/"
  timed "images into containerd's store" node_import_images "$work"
  timed "archive" image_archive "$out/node.tar" "$work/root" '{
    "Entrypoint": ["/kind/bin/vmdk-csi-entrypoint", "/usr/local/bin/entrypoint", "/sbin/init"],
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "container=docker"],
    "StopSignal": "SIGRTMIN+3"}' "$name"
  rm -rf "$work"
}

# kind_files: the directory images/base/files of kind's module.
kind_files() {
  (cd "$HACK_DIR/tools/kind" && GOWORK=off go mod download sigs.k8s.io/kind && GOWORK=off go list -m -f '{{.Dir}}/images/base/files' sigs.k8s.io/kind)
}
kubernetes_source() {
  (cd "$HACK_DIR/tools/k8s" && GOWORK=off go mod download k8s.io/kubernetes && GOWORK=off go list -m -f '{{.Dir}}' k8s.io/kubernetes)
}
# kubeadm_image NAME BIN: the full name that kubeadm asks for.
kubeadm_image() { "$2/kubeadm" config images list --kubernetes-version "$KUBERNETES_VERSION" 2>/dev/null | grep "/$1:"; }

# node_root ROOT BIN
node_root() {
  local root=$1 bin=$2 files u
  files=$(kind_files)
  cp -a --reflink=auto "$(rootfs_path)" "$root"

  # images/base: files, units. Module files are read-only; give them the modes of the Dockerfile.
  cp -r --no-preserve=mode,ownership "$files/etc/." "$root/etc/"
  mkdir -p "$root/kind"
  cp -r --no-preserve=mode,ownership "$files/kind/." "$root/kind/"
  chmod 755 "$root"/kind/bin/*
  install -m 755 "$files"/usr/local/bin/* "$root/usr/local/bin/"
  (
    cd "$root" || exit
    rm -f lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service \
      lib/systemd/system/{multi-user,local-fs,basic}.target.wants/* lib/systemd/system/sockets.target.wants/*{udev,initctl}* \
      etc/systemd/system/*.wants/*
    echo ReadKMsg=no >>etc/systemd/journald.conf
    mkdir -p etc/kubernetes/manifests opt/cni/bin etc/cni/net.d kind/manifests etc/systemd/system/multi-user.target.wants
    for u in kubelet containerd undo-mount-hacks; do
      ln -s "/etc/systemd/system/$u.service" "etc/systemd/system/multi-user.target.wants/$u.service"
    done
    # Units that would reach the machine: its binfmt table, the modes of its /dev (which the nodes mount), its consoles.
    for u in systemd-binfmt systemd-tmpfiles-setup-dev systemd-sysctl console-getty getty@; do
      ln -sf /dev/null "etc/systemd/system/$u.service"
    done
    rm -f usr/lib/sysctl.d/* etc/sysctl.d/99-sysctl.conf
    : >etc/fstab
  )

  # images/base: container runtime.
  install -m 755 "$bin"/{containerd,containerd-shim-runc-v2,ctr,crictl} "$root/usr/local/bin/"
  install -m 755 "$bin/runc" "$root/usr/local/sbin/"
  install -m 755 "$bin"/cni/* "$root/opt/cni/bin/"
  "$bin/ctr" oci spec | jq '.hooks.createContainer += [{path: "/kind/bin/mount-product-files.sh"}] | del(.process.rlimits)' \
    >"$root/etc/containerd/cri-base.json"
  sed -i "s#registry.k8s.io/pause:[0-9.]*#$(kubeadm_image pause "$bin")#" "$root/etc/containerd/config.toml"

  # kind build node-image.
  install -m 755 "$bin"/{kubelet,kubeadm,kubectl} "$root/usr/bin/"
  printf '%s' "$KUBERNETES_VERSION" >"$root/kind/version"
  install -m 644 "$KIND_DIR"/node/default-{cni,storage}.yaml "$root/kind/manifests/"
  install -m 755 "$KIND_DIR/node/entrypoint" "$root/kind/bin/vmdk-csi-entrypoint"
}

# node_control_plane_images WORK
node_control_plane_images() {
  local work=$1 bin=$1/bin rootfs c
  local path='{"Env": ["PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}'
  rootfs=$(rootfs_path)
  # node_image NAME CONFIG IMAGE: packs $work/tree/NAME.
  node_image() { image_archive "$work/images/$1.tar" "$work/tree/$1" "$2" "$3"; }
  # program NAME FILE: a tree with one program.
  program() { install -D -m 755 "$bin/$(basename "$2")" "$work/tree/$1/$2"; }

  for c in kube-apiserver kube-controller-manager kube-scheduler; do
    program $c usr/local/bin/$c
    node_image $c "$path" "registry.k8s.io/$c:$KUBERNETES_VERSION"
  done
  program etcd usr/local/bin/etcd
  node_image etcd "$path" "$(kubeadm_image etcd "$bin")"
  program coredns coredns
  node_image coredns '{"Entrypoint": ["/coredns"], "WorkingDir": "/"}' "$(kubeadm_image coredns "$bin")"

  mkdir -p "$work/tree/pause"
  gcc -Os -static -DVERSION=offline -o "$work/tree/pause/pause" "$(kubernetes_source)/build/pause/linux/pause.c"
  node_image pause '{"Entrypoint": ["/pause"], "User": "65535:65535"}' "$(kubeadm_image pause "$bin")"

  local tables=/usr/sbin/xtables-legacy-multi modules
  mapfile -t modules < <(cd "$rootfs" && find usr/lib/*/xtables -name '*.so' -printf '/%p\n')
  copy_programs "$rootfs" "$work/tree/kube-proxy" $tables /usr/bin/dash "${modules[@]}"
  for c in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -s xtables-legacy-multi "$work/tree/kube-proxy/usr/sbin/$c"
  done
  ln -s dash "$work/tree/kube-proxy/usr/bin/sh"
  program kube-proxy usr/local/bin/kube-proxy
  node_image kube-proxy "$path" "registry.k8s.io/kube-proxy:$KUBERNETES_VERSION"

  copy_programs "$rootfs" "$work/tree/node-cni" /usr/bin/{dash,curl,jq,cat,sleep,mv,ip}
  ln -s dash "$work/tree/node-cni/usr/bin/sh"
  install -m 755 "$KIND_DIR/node/node-cni.sh" "$work/tree/node-cni/"
  node_image node-cni '{"Entrypoint": ["/bin/sh", "/node-cni.sh"], "Env": ["PATH=/usr/sbin:/usr/bin"]}' localhost/node-cni:offline
}

# node_import_images WORK: into the store below the node's /var/lib/containerd, not unpacked, as `kind build node-image` does.
node_import_images() {
  local work=$1
  # A mount and a network namespace: containerd's mounts and sockets stay away from the machine.
  # shellcheck disable=SC2016 # expanded by the inner shell
  unshare --mount --net --pid --fork --kill-child --mount-proc bash -euo pipefail -c '
    work=$1
    PATH=$work/bin:$PATH
    socket=$(mktemp -d)/c.sock
    ctr() { command ctr --address "$socket" --namespace k8s.io "$@"; }
    containerd --config /dev/null --root "$work/root/var/lib/containerd" --state "$work/state" --address "$socket" >"$work/containerd.log" 2>&1 &
    containerd=$!
    for attempt in $(seq 100); do ! ctr version >/dev/null 2>&1 || break; sleep 0.1; done
    for tar in "$work"/images/*.tar; do
      ctr images import --label io.cri-containerd.pinned=pinned --all-platforms --no-unpack --digests "$tar" >>"$work/import.log" 2>&1 ||
        { tail "$work/import.log" "$work/containerd.log" >&2; exit 1; }
    done
    kill $containerd
    wait $containerd || true
  ' bash "$work"
}
