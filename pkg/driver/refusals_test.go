package driver

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/status"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

var update = flag.Bool("update", false, "write the golden files anew")

// refusals collects what calls are refused with, a line each.
type refusals struct {
	t    *testing.T
	text bytes.Buffer
}

func (r *refusals) section(name string) { fmt.Fprintf(&r.text, "%s\n", name) }

func (r *refusals) say(what string, err error) {
	r.t.Helper()
	if err == nil {
		r.t.Errorf("%s: not refused", what)
	}
	s := status.Convert(err)
	fmt.Fprintf(&r.text, "  %-34s %s: %s\n", what, s.Code(), s.Message())
}

// golden compares the texts, with ids by their names, with a file of testdata.
func (r *refusals) golden(path string, names map[string]string) {
	r.t.Helper()
	text := r.text.String()
	for id, name := range names {
		text = strings.ReplaceAll(text, id, name)
	}
	if *update {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			r.t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		r.t.Fatal(err)
	}
	if text != string(want) {
		r.t.Errorf("%s is not what is said now (go test ./pkg/driver -update writes it):\n%s", path, text)
	}
}

// Every refusal of a request says which field is wrong, what it holds, and what is allowed.
func TestRefusals(t *testing.T) {
	ctx := context.Background()
	c, m := newController(t)
	w := newWorld(t, c, m)
	r := &refusals{t: t}
	r.section("CreateVolume")
	for _, tc := range []struct {
		what   string
		change func(*csi.CreateVolumeRequest)
	}{
		{"no name", func(r *csi.CreateVolumeRequest) { r.Name = "" }},
		{"a long name", func(r *csi.CreateVolumeRequest) { r.Name = strings.Repeat("n", 129) }},
		{"a control character", func(r *csi.CreateVolumeRequest) { r.Name = "a\x07" }},
		{"no capability", func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = nil }},
		{"an access mode", func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = []*csi.VolumeCapability{rwo, mountCap(csi.VolumeCapability_AccessMode_MULTI_NODE_SINGLE_WRITER, "")}
		}},
		{"a file system", func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = []*csi.VolumeCapability{mountCap(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "ntfs")}
		}},
		{"an unknown parameter", func(r *csi.CreateVolumeRequest) { r.Parameters["clonemode"] = "full" }},
		{"cloneMode", func(r *csi.CreateVolumeRequest) { r.Parameters["cloneMode"] = "shallow" }},
		{"a datastore", func(r *csi.CreateVolumeRequest) { r.Parameters["datastore"] = "nowhere" }},
		{"too small for btrfs", func(r *csi.CreateVolumeRequest) {
			r.VolumeCapabilities = []*csi.VolumeCapability{mountCap(csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, "btrfs")}
			r.CapacityRange = &csi.CapacityRange{RequiredBytes: 100 * mib}
		}},
		{"a source of nothing", func(r *csi.CreateVolumeRequest) { r.VolumeContentSource = &csi.VolumeContentSource{} }},
		{"no snapshot id", from(&host.Source{Snapshot: ""}, true)},
		{"no volume id", from(&host.Source{Disk: ""}, false)},
		{"a snapshot that cannot be", from(&host.Source{Snapshot: "../../etc"}, true)},
		{"a snapshot that is not", from(&host.Source{Snapshot: host.SnapshotID("none")}, true)},
		{"a volume that cannot be", from(&host.Source{Disk: "../../etc"}, false)},
		{"a volume that is not", from(&host.Source{Disk: host.DiskID("none")}, false)},
		{"a volume that is made", from(&host.Source{Disk: w.pending}, false)},
		{"a volume that is deleted", from(&host.Source{Disk: w.deleting}, false)},
		{"a retired volume", from(&host.Source{Disk: w.retired}, false)},
		{"smaller than its snapshot", both(from(&host.Source{Snapshot: w.snapshot}, true), size(gib, 0))},
		{"a limit below its snapshot", both(from(&host.Source{Snapshot: w.snapshot}, true), size(0, 2*gib-1))},
		{"smaller than its volume", both(from(&host.Source{Disk: w.volume}, false), size(mib, 0))},
		{"another datastore", both(from(&host.Source{Disk: w.volume}, false), func(r *csi.CreateVolumeRequest) { r.Parameters["datastore"] = "shared" })},
		{"nodes without its source", both(from(&host.Source{Snapshot: w.snapshot}, true), func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: topologyOf([]string{"node-b"})}
		})},
		{"the name of a retired volume", func(r *csi.CreateVolumeRequest) { r.Name = "retired" }},
		{"another source", both(from(&host.Source{Disk: w.volume}, false), func(r *csi.CreateVolumeRequest) { r.Name = "restored" })},
		{"another cloneMode", both(from(&host.Source{Snapshot: w.snapshot}, true), func(r *csi.CreateVolumeRequest) {
			r.Name, r.Parameters["cloneMode"] = "restored", "full"
		})},
		{"a limit below what exists", both(from(&host.Source{Snapshot: w.snapshot}, true), both(size(0, gib), func(r *csi.CreateVolumeRequest) { r.Name = "restored" }))},
	} {
		_, err := c.CreateVolume(ctx, request("refused", tc.change))
		r.say(tc.what, err)
	}
	w.refusedSnapshots(r, c)
	w.refusedRetired(r, c)
	r.golden("testdata/refusals.golden", w.names)
}

func (w *world) refusedSnapshots(r *refusals, c csi.ControllerServer) {
	ctx := context.Background()
	r.section("CreateSnapshot")
	for _, tc := range []struct {
		what   string
		change func(*csi.CreateSnapshotRequest)
	}{
		{"no name", func(r *csi.CreateSnapshotRequest) { r.Name = "" }},
		{"a long name", func(r *csi.CreateSnapshotRequest) { r.Name = strings.Repeat("n", 129) }},
		{"a control character", func(r *csi.CreateSnapshotRequest) { r.Name = "a\x00" }},
		{"no volume", func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = "" }},
		{"an unknown parameter", func(r *csi.CreateSnapshotRequest) { r.Parameters = map[string]string{"Freeze": "none"} }},
		{"freeze", func(r *csi.CreateSnapshotRequest) { r.Parameters = map[string]string{"freeze": "true"} }},
		{"freezeDeadline alone", func(r *csi.CreateSnapshotRequest) { r.Parameters = map[string]string{"freezeDeadline": "5s"} }},
		{"freezeDeadline of no unit", func(r *csi.CreateSnapshotRequest) { r.Parameters = freezeFor("10") }},
		{"freezeDeadline of nothing", func(r *csi.CreateSnapshotRequest) { r.Parameters = freezeFor("0s") }},
		{"freezeDeadline below nothing", func(r *csi.CreateSnapshotRequest) { r.Parameters = freezeFor("-1s") }},
		{"freezeDeadline too long", func(r *csi.CreateSnapshotRequest) { r.Parameters = freezeFor("61s") }},
		{"a volume that cannot be", func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = "../../etc" }},
		{"a volume that is not", func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = host.DiskID("none") }},
		{"a volume that is made", func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = w.pending }},
		{"a volume that is deleted", func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = w.deleting }},
		{"a retired volume", func(r *csi.CreateSnapshotRequest) { r.SourceVolumeId = w.retired }},
		{"the name of another's", func(r *csi.CreateSnapshotRequest) { r.Name, r.SourceVolumeId = "snapshot", w.restored }},
		{"nodes without the volume", func(r *csi.CreateSnapshotRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: topologyOf([]string{"node-b", "node-c"})}
		}},
	} {
		req := &csi.CreateSnapshotRequest{Name: "refused", SourceVolumeId: w.volume}
		tc.change(req)
		_, err := c.CreateSnapshot(ctx, req)
		r.say(tc.what, err)
	}
	r.section("DeleteSnapshot, GetSnapshot, ListSnapshots")
	_, err := c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{})
	r.say("delete: no id", err)
	for _, tc := range []struct{ what, id string }{{"get: no id", ""}, {"get: one that cannot be", "../../etc"}, {"get: one that is not", host.SnapshotID("none")}} {
		_, err := c.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: tc.id})
		r.say(tc.what, err)
	}
	_, err = c.ListSnapshots(ctx, &csi.ListSnapshotsRequest{MaxEntries: -1})
	r.say("list: a negative page", err)
	_, err = c.ListSnapshots(ctx, &csi.ListSnapshotsRequest{StartingToken: w.volume})
	r.say("list: a token of nobody's", err)
}

// What was deleted and is kept for its snapshots is no volume.
func (w *world) refusedRetired(r *refusals, c csi.ControllerServer) {
	ctx := context.Background()
	r.section("A retired volume")
	_, err := c.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: w.retired})
	r.say("get", err)
	_, err = c.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: w.retired, NodeId: "node-a", VolumeCapability: rwo})
	r.say("publish", err)
	_, err = c.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: w.retired, CapacityRange: &csi.CapacityRange{RequiredBytes: mib}})
	r.say("expand", err)
	_, err = c.ValidateVolumeCapabilities(ctx, &csi.ValidateVolumeCapabilitiesRequest{VolumeId: w.retired, VolumeCapabilities: []*csi.VolumeCapability{rwo}})
	r.say("validate", err)
}
