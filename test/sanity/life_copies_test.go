package sanity

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// copies takes snapshots of a volume that is in use, and mounts what is made of them beside it; then everything is deleted, the
// volume before its snapshots and the snapshots before their copies.
func (n *rig) copies(t *testing.T, fs string) {
	v := n.volume(t, "source "+fs, fs, nil)
	v.up()
	first, second, third := random(4*mib), random(4*mib), random(4*mib)
	v.write(first)
	old := n.snapshot(t, v, "old "+fs)
	v.write(second)
	young := n.snapshot(t, v, "young "+fs)
	if old.GetSizeBytes() != 320*mib || !old.GetReadyToUse() || !young.GetReadyToUse() {
		t.Fatalf("%v, %v", old, young)
	}

	linked := n.volume(t, "linked "+fs, fs, nil, ofSnapshot(old))
	full := n.volume(t, "full "+fs, fs, map[string]string{"cloneMode": "full"}, ofSnapshot(young), ofSize(448*mib))
	clone := n.volume(t, "clone "+fs, fs, nil, ofVolume(v))
	v.write(third)
	readers := n.volume(t, "readers "+fs, fs, nil, ofSnapshot(young), forReaders)
	for c, content := range map[*volume][]byte{linked: first, full: second, clone: second, readers: second} {
		c.up()
		c.check("beside its source", content)
	}
	if fs != "" {
		full.atLeast(350 * mib)
	}
	readers.refuses(t)
	linked.write(random(mib))
	clone.write(random(mib))
	v.check("while its copies are written", third)
	readers.check("while its source is written", second)

	v.grow(448*mib, fs)
	v.check("grown above its snapshots", third)
	n.hostd.kill()
	n.hostd = startHostd(t, n.dir, n.store)
	v.check("after hostd was killed", third)
	full.check("after hostd was killed", second)
	readers.check("after hostd was killed", second)

	v.down()
	v.deleted()
	_, err := n.ControllerGetVolume(t.Context(), &csi.ControllerGetVolumeRequest{VolumeId: v.id})
	if status.Code(err) != codes.NotFound {
		t.Fatalf("a deleted volume that has snapshots: %v", err)
	}
	late := n.volume(t, "late "+fs, fs, nil, ofSnapshot(old))
	late.up()
	late.check("restored after its source was deleted", first)
	n.unsnapshot(t, old)
	n.unsnapshot(t, young)
	for c, content := range map[*volume][]byte{full: second, late: first, readers: second} {
		c.check("without its snapshot", content)
	}
	for _, c := range []*volume{linked, full, clone, readers, late} {
		c.down()
		c.deleted()
	}
}

// refuses: nothing can be written to what is for readers.
func (v *volume) refuses(t *testing.T) {
	t.Helper()
	path := v.file()
	if v.cap.GetBlock() == nil {
		path = filepath.Join(v.target, "new")
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE, 0o644)
	if err == nil {
		_, err = f.Write(bytes.Repeat([]byte("x"), 4096))
		f.Close()
	}
	if err == nil {
		t.Fatalf("%s was written", path)
	}
}

func (v *volume) deleted() {
	v.t.Helper()
	_, err := v.n.DeleteVolume(v.t.Context(), &csi.DeleteVolumeRequest{VolumeId: v.id})
	v.ok(err)
}

func (n *rig) snapshot(t *testing.T, v *volume, name string) *csi.Snapshot {
	t.Helper()
	s, err := n.CreateSnapshot(t.Context(), &csi.CreateSnapshotRequest{Name: name, SourceVolumeId: v.id})
	if err != nil {
		t.Fatal(err)
	}
	return s.GetSnapshot()
}

func (n *rig) unsnapshot(t *testing.T, s *csi.Snapshot) {
	t.Helper()
	if _, err := n.DeleteSnapshot(t.Context(), &csi.DeleteSnapshotRequest{SnapshotId: s.GetSnapshotId()}); err != nil {
		t.Fatal(fmt.Errorf("delete snapshot: %w", err))
	}
}

func ofSnapshot(s *csi.Snapshot) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.CapacityRange = nil
		r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Snapshot{
			Snapshot: &csi.VolumeContentSource_SnapshotSource{SnapshotId: s.GetSnapshotId()}}}
	}
}

func ofVolume(v *volume) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) {
		r.CapacityRange = nil
		r.VolumeContentSource = &csi.VolumeContentSource{Type: &csi.VolumeContentSource_Volume{
			Volume: &csi.VolumeContentSource_VolumeSource{VolumeId: v.id}}}
	}
}

func ofSize(n int64) func(*csi.CreateVolumeRequest) {
	return func(r *csi.CreateVolumeRequest) { r.CapacityRange = &csi.CapacityRange{RequiredBytes: n} }
}

// forReaders makes a request's one capability that of many nodes' readers; the volume is used with the same one.
func forReaders(r *csi.CreateVolumeRequest) {
	r.VolumeCapabilities[0].AccessMode.Mode = csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
}
