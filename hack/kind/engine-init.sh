#!/usr/bin/env bash
# The first process inside the engine's namespaces (engine.sh starts it): makes the mounts private, then runs containerd and
# dockerd. Nothing done here reaches the machine, save what is written below $STATE_DIR and $ENGINE_STORE.
set -euo pipefail

hostname "$ENGINE_NAME"
# The machine's kubeconfig, proxies and credentials are none of the engine's business.
unset DOCKER_HOST KUBECONFIG
RUN=/run/vmdk-csi-engine

mount_cgroups() {
  local g c v2=
  if [ -e /sys/fs/cgroup/cgroup.controllers ]; then v2=1; fi
  mount -t sysfs sysfs /sys # of this network namespace
  if [ -n "$v2" ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup
    # "No internal processes": no controller is handed down while a process is in the namespace's root. We move to a leaf;
    # engine.sh moves our parent, hence the attempts.
    echo $$ >/sys/fs/cgroup/init/cgroup.procs
    until sed -E 's/([^ ]+)/+\1/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control; do sleep 0.05; done
    return
  fi
  mount -t tmpfs -o mode=755 cgroup /sys/fs/cgroup
  for g in $ENGINE_CGROUPS; do
    c=$(basename "$(dirname "$g")")
    # Not the cgroup2 tree of a hybrid machine: runc would choose it, and it has no controllers.
    [ "$c" != unified ] || continue
    mkdir "/sys/fs/cgroup/$c"
    if [ "$c" = systemd ]; then
      mount -t cgroup -o none,name=systemd cgroup /sys/fs/cgroup/systemd
    else
      mount -t cgroup -o "$c" cgroup "/sys/fs/cgroup/$c"
    fi
  done
}

# A view of /dev without what others mounted below it: containerd gives every device it finds to a privileged container, and a
# dead FUSE mount among them makes each one fail with EIO. Nodes mount this /dev, so a loop device made later shows up there.
mount_dev() {
  mkdir -p "$RUN/dev"
  mount -t devtmpfs devtmpfs "$RUN/dev"
  mkdir -p "$RUN"/dev/{pts,shm,mqueue}
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$RUN/dev/pts"
  mount -t tmpfs -o mode=1777 shm "$RUN/dev/shm"
  mount -t mqueue mqueue "$RUN/dev/mqueue"
  mount --rbind "$RUN/dev" /dev
}

# dockerd makes directories as it likes (/lib/modules for kind's bind mount, /etc/docker): into overlays that end with us.
mount_overlays() {
  local d layer
  # Kept under a second path: /var/lib is about to be covered.
  mkdir -p "$RUN/state" "$RUN/shared" "$RUN/store"
  mount --bind "$STATE_DIR" "$RUN/state"
  mount --bind "$ENGINE_STORE" "$RUN/store"
  mount --bind "$SHARED_DIR" "$RUN/shared"
  for d in /var/lib /usr/lib /etc; do
    layer=$RUN/overlay$d
    mkdir -p "$layer"/{upper,work}
    mount -t overlay -o "lowerdir=$d,upperdir=$layer/upper,workdir=$layer/work" overlay "$d"
  done
  mkdir -p "$STATE_DIR" "$SHARED_DIR" "$ENGINE_STORE"
  mount --bind "$RUN/state" "$STATE_DIR"
  mount --bind "$RUN/store" "$ENGINE_STORE"
  mount --bind "$RUN/shared" "$SHARED_DIR"
  : >/etc/resolv.conf # there is no name server to ask: nothing may be pulled
}

# The legacy tables under the plain names: dockerd's own choice, nft, is not in every kernel.
set_path() {
  local n
  mkdir -p "$RUN/iptables"
  for n in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -s /usr/sbin/xtables-legacy-multi "$RUN/iptables/$n"
  done
  PATH=$RUN/iptables:$ENGINE_UNPACKED/usr/sbin:$ENGINE_UNPACKED/usr/bin:/usr/sbin:/usr/bin:/sbin:/bin
  export PATH
}

set_network() {
  ip link set lo up
  until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
  ip addr add "$ENGINE_IP/30" dev eth0
  ip link set eth0 up
  ip route add default via "$ENGINE_HOST_IP"
}

start_containerd() {
  mkdir -p "$ENGINE_STORE/containerd" /run/containerd
  cat >"$RUN/containerd.toml" <<TOML
version = 2
root = "$ENGINE_STORE/containerd"
state = "/run/containerd"
oom_score = 0
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
[grpc]
  address = "/run/containerd/containerd.sock"
TOML
  containerd -c "$RUN/containerd.toml" >"$ENGINE_DIR/logs/containerd.log" 2>&1 &
  until [ -S /run/containerd/containerd.sock ]; do sleep 0.05; done
}

# An OOM score of 0 and the wrapped runtime: root of this machine may lack CAP_SYS_RESOURCE, without which no score can be lowered.
# Addresses: pools that home and office networks seldom use; the defaults (172.17 and on) may be this machine's own.
start_dockerd() {
  dockerd --host "unix://$ENGINE_SOCKET" --containerd /run/containerd/containerd.sock \
    --data-root "$ENGINE_STORE/docker" --exec-root /run/docker --pidfile /run/docker.pid \
    --storage-driver overlay2 --exec-opt native.cgroupdriver=cgroupfs --oom-score-adjust=0 \
    --userland-proxy-path "$(command -v docker-proxy)" --init-path "$(command -v docker-init)" \
    --add-runtime wrapped="$RUNTIME_WRAPPER" --default-runtime wrapped \
    --bip 172.30.0.1/24 --default-address-pool base=172.31.0.0/16,size=24 >"$ENGINE_DIR/logs/dockerd.log" 2>&1 &
}

mount -t tmpfs -o mode=755 run /run
mkdir -p /run/lock "$RUN"
mount_cgroups
mount_dev
mount_overlays
set_path
set_network
start_containerd
start_dockerd

# As pid 1 we inherit every orphan; bash reaps them while it waits. The end of a daemon is the end of the engine.
wait -n
echo "a daemon of the engine ended" >&2
exit 1
