package driver

import (
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// TopologyNode is the topology key of a datastore that one node alone reaches; its value is the node's name.
const TopologyNode = "topology." + Name + "/node"

func topologyOf(nodes []string) []*csi.Topology {
	var out []*csi.Topology
	for _, n := range nodes {
		out = append(out, &csi.Topology{Segments: map[string]string{TopologyNode: n}})
	}
	return out
}

// nodesOf are the nodes of topologies in their order; a topology without our key is no restriction and is left out.
func nodesOf(ts []*csi.Topology) []string {
	var out []string
	for _, t := range ts {
		if n := t.GetSegments()[TopologyNode]; n != "" && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// pickDatastore finds the datastore that a StorageClass names, or the only one.
func pickDatastore(all []host.Datastore, name string) (host.Datastore, error) {
	names := make([]string, 0, len(all))
	for _, d := range all {
		if d.Name == name {
			return d, nil
		}
		names = append(names, d.Name)
	}
	switch {
	case len(all) == 0:
		return host.Datastore{}, fault.New(fault.Unavailable, "create a Datastore, or see why no node plugin reports one",
			"there is no datastore")
	case name == "" && len(all) == 1:
		return all[0], nil
	case name == "":
		return host.Datastore{}, invalid("allowed values: "+strings.Join(names, ", "), "parameter %q is missing", ParamDatastore)
	}
	return host.Datastore{}, invalid("allowed values: "+strings.Join(names, ", "),
		"parameter %q: value %q: there is no such datastore", ParamDatastore, clip(name))
}

// pickHost chooses where a disk of a datastore is made: for a node's own datastore the first of the preferred, then of
// the requisite nodes that is ready and has room; without a wish the ready one with the most room. A shared datastore has
// no host of its own ("" is any).
func pickHost(d host.Datastore, r *csi.TopologyRequirement, need int64) (string, error) {
	if d.Scope == host.ScopeShared {
		return "", nil
	}
	wished := append(nodesOf(r.GetPreferred()), nodesOf(r.GetRequisite())...)
	candidates := slices.Clone(d.Hosts)
	if len(wished) > 0 {
		candidates = candidates[:0]
		for _, n := range wished {
			if i := slices.IndexFunc(d.Hosts, func(h host.DatastoreHost) bool { return h.Host == n }); i >= 0 {
				candidates = append(candidates, d.Hosts[i])
			}
		}
	} else {
		slices.SortStableFunc(candidates, func(a, b host.DatastoreHost) int { return compare(b.Free, a.Free) })
	}
	var whyNot []string
	full := false
	for _, h := range candidates {
		switch {
		case !h.Ready:
			whyNot = append(whyNot, h.Host+": "+h.Reason)
		case h.Free < need:
			full = true
			whyNot = append(whyNot, h.Host+": "+sizeText(h.Free)+" free")
		default:
			return h.Host, nil
		}
	}
	if full {
		return "", fault.New(fault.NoSpace, "free space on the datastore, or ask for a thin disk",
			"datastore %s: no node has room for %s (%s)", d.Name, sizeText(need), strings.Join(whyNot, "; "))
	}
	if len(whyNot) == 0 {
		whyNot = []string{"it is on none of the nodes asked for (" + strings.Join(wished, ", ") + ")"}
	}
	return "", fault.New(fault.Exhausted, "make the datastore ready on a node that the claim's pod can run on",
		"datastore %s: no node can take the disk: %s", d.Name, strings.Join(whyNot, "; "))
}

func compare(a, b int64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// room is the free space of a datastore as seen from node ("": from everywhere) and the largest single disk.
func room(d host.Datastore, node string) (free, largest int64) {
	for _, h := range d.Hosts {
		if !h.Ready || node != "" && h.Host != node {
			continue
		}
		largest = max(largest, h.Free)
		if d.Scope == host.ScopeShared {
			free = largest // every host sees the same bytes
		} else {
			free += h.Free
		}
	}
	return free, min(largest-largest%host.CapacityUnit, host.MaxCapacity)
}
