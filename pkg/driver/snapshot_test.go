package driver

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"

	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
)

// world is a controller with volumes in every state that a request can meet. All are on node-a.
type world struct {
	volume, snapshot  string // 2 GiB, and a snapshot of it
	restored          string // from snapshot
	retired, kept     string // a deleted volume, and its snapshot
	pending, deleting string
	names             map[string]string // by id
}

func newWorld(t *testing.T, c csi.ControllerServer, m *hosttest.Memory) *world {
	t.Helper()
	w := &world{names: map[string]string{}}
	volume := func(name string, change ...func(*csi.CreateVolumeRequest)) string {
		t.Helper()
		on := func(r *csi.CreateVolumeRequest) {
			r.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: topologyOf([]string{"node-a"})}
		}
		v, err := c.CreateVolume(context.Background(), request(name, append(change, on)...))
		if err != nil {
			t.Fatal(err)
		}
		w.names[v.GetVolume().GetVolumeId()] = "<" + name + ">"
		return v.GetVolume().GetVolumeId()
	}
	snapshot := func(name, volume string) string {
		t.Helper()
		s, err := c.CreateSnapshot(context.Background(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: volume})
		if err != nil {
			t.Fatal(err)
		}
		w.names[s.GetSnapshot().GetSnapshotId()] = "<" + name + ">"
		return s.GetSnapshot().GetSnapshotId()
	}
	w.volume = volume("volume", size(2*gib, 0))
	w.snapshot = snapshot("snapshot", w.volume)
	w.restored = volume("restored", from(&host.Source{Snapshot: w.snapshot}, true))
	w.retired = volume("retired")
	w.kept = snapshot("kept", w.retired)
	if _, err := c.DeleteVolume(context.Background(), &csi.DeleteVolumeRequest{VolumeId: w.retired}); err != nil {
		t.Fatal(err)
	}
	w.pending, w.deleting = volume("pending"), volume("deleting")
	m.SetPhase(w.pending, host.Pending, "")
	m.SetPhase(w.deleting, host.Deleting, "")
	w.names[host.DiskID("none")], w.names[host.SnapshotID("none")] = "<no volume>", "<no snapshot>"
	return w
}

// from makes a request name a source; of a snapshot, or of a volume.
func from(s *host.Source, snapshot bool) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		if snapshot {
			r.VolumeContentSource = contentSource(&host.Source{Snapshot: "x"})
			r.VolumeContentSource.GetSnapshot().SnapshotId = s.Snapshot
			return
		}
		r.VolumeContentSource = contentSource(&host.Source{Disk: s.Disk})
	}
}

func size(required, limit int64) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.CapacityRange = &csi.CapacityRange{RequiredBytes: required, LimitBytes: limit}
	}
}

func both(a, b func(*csi.CreateVolumeRequest)) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) { a(r); b(r) }
}

func freezeFor(deadline string) map[string]string {
	return map[string]string{"freeze": "filesystem", "freezeDeadline": deadline}
}

func TestFreeze(t *testing.T) {
	for _, tc := range []struct {
		in       map[string]string
		freeze   host.Freeze
		deadline time.Duration
	}{
		{nil, host.FreezeNone, 0},
		{map[string]string{"freeze": "none"}, host.FreezeNone, 0},
		{map[string]string{"freeze": "filesystem"}, host.FreezeFilesystem, 10 * time.Second},
		{freezeFor("500ms"), host.FreezeFilesystem, 500 * time.Millisecond},
		{freezeFor("1m"), host.FreezeFilesystem, time.Minute},
		{map[string]string{"csi.storage.k8s.io/volumesnapshot/name": "s", "csi.storage.k8s.io/volumesnapshot/namespace": "ns",
			"csi.storage.k8s.io/volumesnapshotcontent/name": "c", "csi.storage.k8s.io/later": ""}, host.FreezeNone, 0},
	} {
		freeze, deadline, err := parseFreeze(tc.in)
		if err != nil || freeze != tc.freeze || deadline != tc.deadline {
			t.Errorf("%v: %s %s %v", tc.in, freeze, deadline, err)
		}
	}
}

// asked records what the port is asked.
type asked struct {
	*hosttest.Memory
	snapshots []host.SnapshotSpec
	disks     []host.DiskSpec
	unready   bool
}

func (a *asked) CreateSnapshot(ctx context.Context, s host.SnapshotSpec) (host.Snapshot, error) {
	a.snapshots = append(a.snapshots, s)
	return a.Memory.CreateSnapshot(ctx, s)
}

func (a *asked) Create(ctx context.Context, s host.DiskSpec) (host.Disk, error) {
	a.disks = append(a.disks, s)
	return a.Memory.Create(ctx, s)
}

func (a *asked) GetSnapshot(ctx context.Context, id string) (host.Snapshot, error) {
	s, err := a.Memory.GetSnapshot(ctx, id)
	if a.unready {
		s.Ready, s.Created = false, time.Time{}
	}
	return s, err
}

func (a *asked) ListSnapshots(ctx context.Context, disk string, max int, token string) ([]host.Snapshot, string, error) {
	list, next, err := a.Memory.ListSnapshots(ctx, disk, max, token)
	for i := range list {
		if a.unready {
			list[i].Ready, list[i].Created = false, time.Time{}
		}
	}
	return list, next, err
}

func TestSnapshots(t *testing.T) {
	ctx := context.Background()
	m := &asked{Memory: hosttest.NewMemory("node-a", "node-b")}
	t.Cleanup(m.Close)
	c := NewController(m)
	w := newWorld(t, c, m.Memory)
	req := &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: w.volume, Parameters: freezeFor("5s"),
		AccessibilityRequirements: &csi.TopologyRequirement{Requisite: topologyOf([]string{"node-b", "node-a"})}}
	first, err := c.CreateSnapshot(ctx, req)
	if err != nil {
		t.Fatal(err)
	}
	s := first.GetSnapshot()
	if s.GetSnapshotId() != host.SnapshotID("s") || s.GetSourceVolumeId() != w.volume || s.GetSizeBytes() != 2*gib || !s.GetReadyToUse() ||
		s.GetCreationTime().AsTime().IsZero() || fmt.Sprint(nodesOf(s.GetAccessibleTopology())) != "[node-a]" {
		t.Errorf("snapshot: %v", s)
	}
	if spec := m.snapshots[len(m.snapshots)-1]; spec.Freeze != host.FreezeFilesystem || spec.FreezeDeadline != 5*time.Second {
		t.Errorf("the port was asked for %+v", spec)
	}
	if again, err := c.CreateSnapshot(ctx, req); err != nil || again.String() != first.String() {
		t.Errorf("again: %v, %v", again, err)
	}
	if got, err := c.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: s.GetSnapshotId()}); err != nil || got.GetSnapshot().String() != s.String() {
		t.Errorf("get: %v, %v", got, err)
	}
	for range 2 {
		_, err := c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: s.GetSnapshotId()})
		wantCode(t, "delete", err, codes.OK)
	}
	_, err = c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: "../../etc"})
	wantCode(t, "delete what cannot be", err, codes.OK)
	_, err = c.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: s.GetSnapshotId()})
	wantCode(t, "get after delete", err, codes.NotFound)
}

func TestListSnapshots(t *testing.T) {
	ctx := context.Background()
	m := &asked{Memory: hosttest.NewMemory("node-a", "node-b")}
	t.Cleanup(m.Close)
	c := NewController(m)
	w := newWorld(t, c, m.Memory)
	for i := range 3 {
		if _, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: fmt.Sprint(i), SourceVolumeId: w.volume}); err != nil {
			t.Fatal(err)
		}
	}
	list := func(r *csi.ListSnapshotsRequest) []string {
		t.Helper()
		var ids []string
		for {
			l, err := c.ListSnapshots(ctx, r)
			if err != nil || r.GetMaxEntries() > 0 && len(l.GetEntries()) > int(r.GetMaxEntries()) {
				t.Fatalf("%v: %v, %v", r, l, err)
			}
			for _, e := range l.GetEntries() {
				ids = append(ids, e.GetSnapshot().GetSnapshotId())
			}
			if r.StartingToken = l.GetNextToken(); r.GetStartingToken() == "" {
				return ids
			}
		}
	}
	for what, tc := range map[string]struct {
		req  *csi.ListSnapshotsRequest
		want int
	}{
		"all":                     {&csi.ListSnapshotsRequest{}, 5},
		"one by one":              {&csi.ListSnapshotsRequest{MaxEntries: 1}, 5},
		"by id":                   {&csi.ListSnapshotsRequest{SnapshotId: w.snapshot}, 1},
		"by id and volume":        {&csi.ListSnapshotsRequest{SnapshotId: w.snapshot, SourceVolumeId: w.volume}, 1},
		"by id and another's":     {&csi.ListSnapshotsRequest{SnapshotId: w.snapshot, SourceVolumeId: w.retired}, 0},
		"by an id that is not":    {&csi.ListSnapshotsRequest{SnapshotId: host.SnapshotID("none")}, 0},
		"by an id that cannot be": {&csi.ListSnapshotsRequest{SnapshotId: "none"}, 0},
		"by volume":               {&csi.ListSnapshotsRequest{SourceVolumeId: w.volume}, 4},
		"by volume, two a page":   {&csi.ListSnapshotsRequest{SourceVolumeId: w.volume, MaxEntries: 2}, 4},
		"of a retired volume":     {&csi.ListSnapshotsRequest{SourceVolumeId: w.retired}, 1},
		"of no volume":            {&csi.ListSnapshotsRequest{SourceVolumeId: host.DiskID("none")}, 0},
		"of what cannot be one":   {&csi.ListSnapshotsRequest{SourceVolumeId: "none"}, 0},
	} {
		if got := list(tc.req); len(got) != tc.want || !slices.IsSorted(got) {
			t.Errorf("%s: %v, want %d", what, got, tc.want)
		}
	}
	// What is not cut yet is not listed, and is nobody's source.
	m.unready = true
	if got := list(&csi.ListSnapshotsRequest{}); len(got) != 0 {
		t.Errorf("not cut, and listed: %v", got)
	}
	_, err := c.GetSnapshot(ctx, &csi.GetSnapshotRequest{SnapshotId: w.snapshot})
	wantCode(t, "get what is not cut", err, codes.NotFound)
	_, err = c.CreateVolume(ctx, request("early", from(&host.Source{Snapshot: w.snapshot}, true)))
	wantCode(t, "restore what is not cut", err, codes.Aborted)
}

func TestRestoreAndClone(t *testing.T) {
	ctx := context.Background()
	m := &asked{Memory: hosttest.NewMemory("node-a", "node-b")}
	t.Cleanup(m.Close)
	c := NewController(m)
	w := newWorld(t, c, m.Memory)
	snapshot, volume := from(&host.Source{Snapshot: w.snapshot}, true), from(&host.Source{Disk: w.volume}, false)
	param := func(key, value string) func(*csi.CreateVolumeRequest) {
		return func(r *csi.CreateVolumeRequest) { r.Parameters[key] = value }
	}
	for what, tc := range map[string]struct {
		change func(*csi.CreateVolumeRequest)
		size   int64
		mode   host.CloneMode
	}{
		"of its size":           {snapshot, 2 * gib, host.CloneLinked},
		"of the same size":      {both(snapshot, size(2*gib-5, 2*gib)), 2 * gib, host.CloneLinked},
		"larger":                {both(snapshot, size(3*gib, 0)), 3 * gib, host.CloneLinked},
		"full":                  {both(snapshot, param("cloneMode", "full")), 2 * gib, host.CloneFull},
		"without a datastore":   {both(snapshot, func(r *csi.CreateVolumeRequest) { delete(r.Parameters, "datastore") }), 2 * gib, host.CloneLinked},
		"clone":                 {both(volume, param("cloneMode", "linked")), 2 * gib, host.CloneLinked},
		"clone, larger":         {both(volume, size(4*gib, 0)), 4 * gib, host.CloneLinked},
		"clone, full":           {both(volume, param("cloneMode", "full")), 2 * gib, host.CloneFull},
		"for a node beside its": {both(snapshot, wish("node-b", "node-b", "node-a")), 2 * gib, host.CloneLinked},
	} {
		req := request(what, tc.change)
		first, err := c.CreateVolume(ctx, req)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		v := first.GetVolume()
		if v.GetCapacityBytes() != tc.size || v.GetContentSource().String() != req.GetVolumeContentSource().String() ||
			fmt.Sprint(nodesOf(v.GetAccessibleTopology())) != "[node-a]" {
			t.Errorf("%s: %v", what, v)
		}
		if spec := m.disks[len(m.disks)-1]; spec.CloneMode != tc.mode || spec.Datastore != "local" || spec.Host != "node-a" {
			t.Errorf("%s: the port was asked for %+v", what, spec)
		}
		if again, err := c.CreateVolume(ctx, req); err != nil || again.String() != first.String() {
			t.Errorf("%s, again: %v, %v", what, again, err)
		}
	}
	if _, err := c.CreateVolume(ctx, request("empty", param("cloneMode", "full"))); err != nil || m.disks[len(m.disks)-1].CloneMode != "" {
		t.Errorf("cloneMode is not about an empty volume: %+v, %v", m.disks[len(m.disks)-1], err)
	}
}

func wish(preferred string, requisite ...string) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.AccessibilityRequirements = &csi.TopologyRequirement{Preferred: topologyOf([]string{preferred}), Requisite: topologyOf(requisite)}
	}
}

// The answer to a repeated request does not depend on what became of the source meanwhile.
func TestRestoreIsIdempotent(t *testing.T) {
	ctx := context.Background()
	c, m := newController(t)
	w := newWorld(t, c, m)
	restore, clone := request("r", from(&host.Source{Snapshot: w.snapshot}, true)), request("c", from(&host.Source{Disk: w.volume}, false))
	var first [2]string
	for _, meanwhile := range []struct {
		what string
		do   func() error
	}{
		{"nothing", func() error { return nil }},
		{"the source has grown", func() error {
			_, err := c.ControllerExpandVolume(ctx, &csi.ControllerExpandVolumeRequest{VolumeId: w.volume,
				CapacityRange: &csi.CapacityRange{RequiredBytes: 9 * gib}})
			return err
		}},
		{"the volume was deleted", func() error {
			_, err := c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: w.volume})
			return err
		}},
		{"the snapshot was deleted", func() error {
			_, err := c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: w.snapshot})
			return err
		}},
	} {
		if err := meanwhile.do(); err != nil {
			t.Fatalf("%s: %v", meanwhile.what, err)
		}
		for i, req := range []*csi.CreateVolumeRequest{restore, clone} {
			v, err := c.CreateVolume(ctx, req)
			if err != nil || first[i] != "" && v.String() != first[i] {
				t.Fatalf("%s, %s: %v, %v; was %s", req.GetName(), meanwhile.what, v, err, first[i])
			}
			first[i] = v.String()
		}
	}
}

// A snapshot for many readers: one volume, read on several nodes at once, that nobody can come to write.
func TestManyReaders(t *testing.T) {
	ctx := context.Background()
	c, m := newController(t)
	shared := func(r *csi.CreateVolumeRequest) { r.Parameters["datastore"] = "shared" }
	v, err := c.CreateVolume(ctx, request("v", shared))
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: "s", SourceVolumeId: v.GetVolume().GetVolumeId()})
	if err != nil || len(s.GetSnapshot().GetAccessibleTopology()) != 0 {
		t.Fatalf("%v, %v", s, err)
	}
	rox := mountCap(csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY, "xfs")
	r, err := c.CreateVolume(ctx, request("r", shared, from(&host.Source{Snapshot: s.GetSnapshot().GetSnapshotId()}, true),
		func(r *csi.CreateVolumeRequest) { r.VolumeCapabilities = []*csi.VolumeCapability{rox} }))
	if err != nil {
		t.Fatal(err)
	}
	id := r.GetVolume().GetVolumeId()
	publish := func(node string, can *csi.VolumeCapability) (*csi.ControllerPublishVolumeResponse, error) {
		return c.ControllerPublishVolume(ctx, &csi.ControllerPublishVolumeRequest{VolumeId: id, NodeId: node, VolumeCapability: can})
	}
	for range 2 {
		for _, node := range []string{"node-a", "node-b"} {
			p, err := publish(node, rox)
			if err != nil || p.GetPublishContext()[contextReadOnly] != "true" {
				t.Errorf("publish on %s: %v, %v", node, p, err)
			}
			if _, err := m.On(node).Attach(ctx, host.AttachRequest{ID: id, ReadOnly: true}, hosttest.NoKernel(t, id).Device()); err != nil {
				t.Errorf("attach on %s: %v", node, err)
			}
		}
	}
	got, err := c.ControllerGetVolume(ctx, &csi.ControllerGetVolumeRequest{VolumeId: id})
	if err != nil || strings.Join(got.GetStatus().GetPublishedNodeIds(), " ") != "node-a node-b" {
		t.Errorf("published on %v, %v", got, err)
	}
	_, err = publish("node-a", rwo)
	wantCode(t, "publish for writing where it is read", err, codes.AlreadyExists)
	for _, node := range []string{"node-a", "node-b"} {
		if err := m.On(node).Detach(ctx, id); err != nil {
			t.Error(err)
		}
		_, err := c.ControllerUnpublishVolume(ctx, &csi.ControllerUnpublishVolumeRequest{VolumeId: id, NodeId: node})
		wantCode(t, "unpublish", err, codes.OK)
	}
}

func TestRetiredVolumesAreHidden(t *testing.T) {
	ctx := context.Background()
	c, m := newController(t)
	w := newWorld(t, c, m)
	list, err := c.ListVolumes(ctx, &csi.ListVolumesRequest{})
	if err != nil || strings.Contains(list.String(), w.retired) || !strings.Contains(list.String(), w.restored) {
		t.Errorf("list: %v, %v", list, err)
	}
	for _, e := range list.GetEntries() {
		if want := e.GetVolume().GetVolumeId() == w.restored; (e.GetVolume().GetContentSource() != nil) != want {
			t.Errorf("the source of a listed volume: %v", e)
		}
	}
	r, err := c.CreateVolume(ctx, request("r", from(&host.Source{Snapshot: w.kept}, true)))
	if err != nil || r.GetVolume().GetCapacityBytes() != gib {
		t.Errorf("restore of a retired volume's snapshot: %v, %v", r, err)
	}
	for range 2 {
		_, err = c.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: w.retired})
		wantCode(t, "delete again", err, codes.OK)
	}
	_, err = c.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: w.kept})
	wantCode(t, "delete its last snapshot", err, codes.OK)
	if _, err := c.CreateVolume(ctx, request("retired")); err != nil {
		t.Errorf("its name is free again: %v", err)
	}
}
