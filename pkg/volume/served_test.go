package volume_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

// served is an attached disk whose worker is this process.
type served struct {
	*chain.Chain
	dir   fsx.Dir
	epoch int64
}

func (s *served) Snapshot(ctx context.Context, child string, extentSize int64, commit func(parent, child *vmdk.Info) error) error {
	return s.Chain.Snapshot(ctx, chain.SnapshotParams{Child: child, ExtentSize: extentSize, Commit: commit})
}

func (s *served) MergeCost(_ context.Context, lower int) (down, up int64, err error) {
	return s.Chain.MergeCost(lower)
}

// world is a datastore below a directory, as one host works with it.
type world struct {
	root  fsx.Dir
	v     *volume.Volumes
	store *datastore.Datastore
}

func newWorld(root fsx.Dir, name, boot string, e volume.Engine) (*world, error) {
	s, err := datastore.Open(root, datastore.Options{})
	if err != nil {
		return nil, err
	}
	return &world{root: root, store: s,
		v: volume.New(volume.Config{Store: s, Name: "store", Host: lease.Identity{Host: name, BootID: boot}, Engine: e})}, nil
}

// realWorld is one in a directory of its own.
func realWorld(t *testing.T) (*world, string) {
	t.Helper()
	path := t.TempDir()
	root, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	w, err := newWorld(root, "a", "1", volume.VMDK{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.store.Close)
	return w, path
}

// dir is the directory of a disk.
func (w *world) dir(id string) (fsx.Dir, error) {
	all, err := w.root.Sub("volumes")
	if err != nil {
		return nil, err
	}
	defer all.Close()
	return all.Sub(id)
}

func (w *world) attach(id string) (*served, error) {
	o, err := w.v.OpenForAttach(context.Background(), id, false)
	if err != nil {
		return nil, err
	}
	_ = o.Dir.Close()
	d, err := w.dir(id)
	if err != nil {
		return nil, err
	}
	c, err := chain.Open(d, o.Refs, chain.Options{Pending: &chain.MemoryPending{}, Format: vmdk.Format(o.Format), Locks: true})
	if err != nil {
		_ = d.Close()
		return nil, fmt.Errorf("open the chain of %s: %w", id, err)
	}
	return &served{Chain: c, dir: d, epoch: o.Epoch}, nil
}

func (w *world) detach(id string, s *served) error {
	err := s.Close()
	_ = s.dir.Close()
	return errors.Join(err, w.v.Release(context.Background(), id, s.epoch, err != nil))
}

// manifest is what the datastore says of a disk; nil if there is none.
func (w *world) manifest(id string) (*datastore.Manifest, error) {
	vol, err := w.store.OpenVolume(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer vol.Close()
	m, ok, err := vol.Latest()
	if err != nil || !ok {
		return nil, err
	}
	return &m, nil
}

// content reads the chain of a disk up to a link, with nobody's leave.
func (w *world) content(id, link string) ([]byte, error) {
	m, err := w.manifest(id)
	if err != nil || m == nil {
		return nil, fmt.Errorf("disk %s has no manifest: %w", id, err)
	}
	links := m.Links
	if link != "" {
		links = links[:m.Index(link)+1]
	}
	d, err := w.dir(id)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	c, err := chain.Open(d, volume.Refs(links), chain.Options{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("read disk %s up to %q: %w", id, link, err)
	}
	p := make([]byte, c.Size())
	_, err = c.ReadAt(p, 0)
	return p, errors.Join(err, c.Close())
}

// holds compares the content of a disk, or of a snapshot of it, with want.
func (w *world) holds(id, snapshot string, want []byte) error {
	link := ""
	if snapshot != "" {
		m, err := w.manifest(id)
		if err != nil || m == nil {
			return fmt.Errorf("disk %s has no manifest: %w", id, err)
		}
		for _, s := range m.Snapshots {
			if s.ID == snapshot {
				link = s.Link
			}
		}
		if link == "" {
			return fmt.Errorf("disk %s has no snapshot %s", id, snapshot)
		}
	}
	got, err := w.content(id, link)
	if err != nil {
		return err
	}
	return same(got, want, id+" "+snapshot)
}

func same(got, want []byte, what string) error {
	if bytes.Equal(got, want) {
		return nil
	}
	if len(got) != len(want) {
		return fmt.Errorf("%s has %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			return fmt.Errorf("%s: byte %#x (grain %d) is %#x, want %#x", what, i, i>>16, got[i], want[i])
		}
	}
	return nil
}

// qemuReads compares what qemu-img reads of a link's chain with want.
func qemuReads(t *testing.T, path string, want []byte) {
	t.Helper()
	if err := qemuSame(t, path, want); err != nil {
		t.Fatal(err)
	}
}

func qemuSame(t *testing.T, path string, want []byte) error {
	t.Helper()
	raw := path + ".raw" // beside it: the datastore's directory is the test's own
	out, err := exec.CommandContext(t.Context(), "qemu-img", "convert", "-U", "-f", "vmdk", "-O", "raw", path, raw).CombinedOutput()
	if err != nil {
		return fmt.Errorf("qemu-img convert %s: %w\n%s", path, err, out)
	}
	got, err := os.ReadFile(raw)
	if err := errors.Join(err, os.Remove(raw)); err != nil {
		return err
	}
	return same(got, want, "qemu's "+path)
}

func needsQEMU(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("qemu-img is not installed")
	}
}

// left are the names that a datastore has below names/ and volumes/.
func (w *world) left() (string, error) {
	var out []string
	for _, sub := range []string{"names", "volumes"} {
		d, err := w.root.Sub(sub)
		if err != nil {
			return "", err
		}
		names, err := d.List()
		if err = errors.Join(err, d.Close()); err != nil {
			return "", err
		}
		for _, n := range names {
			out = append(out, sub+"/"+n)
		}
	}
	return strings.Join(out, " "), nil
}

func (w *world) wantEmpty(t *testing.T) {
	t.Helper()
	left, err := w.left()
	if err != nil || left != "" {
		t.Fatalf("left on the datastore: %s (%v)", left, err)
	}
}

// disk makes a sparse or flat disk with content in it, detached.
func (w *world) disk(t *testing.T, name string, typ host.DiskType, content []byte) host.Disk {
	t.Helper()
	d, err := w.v.Create(t.Context(), host.DiskSpec{Name: name, Size: int64(len(content)), Type: typ})
	if err != nil {
		t.Fatal(err)
	}
	w.write(t, d.ID, content)
	return d
}

// write writes all of content to a detached disk.
func (w *world) write(t *testing.T, id string, content []byte) {
	t.Helper()
	w.writeAt(t, id, content, 0)
}

func (w *world) writeAt(t *testing.T, id string, content []byte, off int64) {
	t.Helper()
	s := w.mustAttach(t, id)
	if _, err := s.WriteAt(content, off); err != nil {
		t.Fatal(err)
	}
	w.mustDetach(t, id, s)
}

func (w *world) mustAttach(t *testing.T, id string) *served {
	t.Helper()
	s, err := w.attach(id)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func (w *world) mustDetach(t *testing.T, id string, s *served) {
	t.Helper()
	if err := w.detach(id, s); err != nil {
		t.Fatal(err)
	}
}

func (w *world) snapshot(t *testing.T, disk, name string, s *served) host.Snapshot {
	t.Helper()
	var server volume.Server
	if s != nil {
		server = s
	}
	p, err := w.v.Snapshot(t.Context(), host.SnapshotSpec{Name: name, Disk: disk}, time.Time{}, server)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w *world) must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// pattern is content that tells where it came from.
func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed ^ byte(i) ^ byte(i>>9) ^ byte(i>>16)
	}
	return p
}

// seeded is the test's source of chance; SEED replays it.
func seeded(t *testing.T) (*rand.Rand, uint64) {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("SEED: %v", err)
		}
		seed = n
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 2)), seed
}
