# The cluster network of an offline node, in place of kindnetd: this node's CNI configuration from its podCIDR, and a route to
# every other node's podCIDR. No NetworkPolicy, no masquerading (there is no world to reach).
set -u
SECRETS=/var/run/secrets/kubernetes.io/serviceaccount
configured=

nodes() {
  curl --silent --show-error --fail --max-time 10 --cacert $SECRETS/ca.crt \
    --header "Authorization: Bearer $(cat $SECRETS/token)" "https://$CONTROL_PLANE_ENDPOINT/api/v1/nodes" |
    jq -r '.items[] | [.metadata.name, .spec.podCIDR // "", (.status.addresses[]? | select(.type == "InternalIP") | .address)] | join(" ")'
}

configure() { # CIDR: the file's appearance is what makes the node Ready, hence the rename
  cat >/etc/cni/net.d/.new <<JSON
{"cniVersion": "0.4.0", "name": "kindnet", "plugins": [
  {"type": "ptp", "ipMasq": false, "mtu": 1500,
   "ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "$1"}]]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}]}
JSON
  mv /etc/cni/net.d/.new /etc/cni/net.d/10-kindnet.conflist && configured=$1 && echo "pods of this node: $1"
}

while :; do
  pause=1
  nodes >/tmp/nodes && pause=5
  while read -r name cidr address; do
    if [ -z "$address" ]; then pause=1; continue; fi # no podCIDR or no address yet
    if [ "$name" != "$NODE_NAME" ]; then ip route replace "$cidr" via "$address"
    elif [ "$configured" != "$cidr" ]; then configure "$cidr"
    fi
  done </tmp/nodes
  [ -n "$configured" ] || pause=1
  sleep $pause
done
