package san_test

import (
	"bytes"
	"context"
	"errors"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/lease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/volume"
)

const diskSize = 8 << 20

// engine is the engine on a store, as a metadata server has it.
type engine struct {
	t    testing.TB
	s    *store.Store
	vols *volume.Volumes
}

func newEngine(t testing.TB, s *store.Store) *engine {
	t.Helper()
	ds, err := datastore.Open(s.Root(), datastore.Options{})
	must(t, err)
	t.Cleanup(ds.Close)
	return &engine{t, s, volume.New(volume.Config{Store: ds, Name: "lun", Host: lease.Identity{Host: "a", BootID: "1"}, Engine: volume.VMDK{}})}
}

func (e *engine) create(name string, format host.DiskFormat, typ host.DiskType) {
	e.t.Helper()
	_, err := e.vols.Create(ctx, host.DiskSpec{Name: name, Datastore: "lun", Size: diskSize, Format: format, Type: typ})
	must(e.t, err)
}

func (e *engine) dir(name string) fsx.Dir {
	e.t.Helper()
	all, err := e.s.Root().Sub("volumes")
	must(e.t, err)
	d, err := all.Sub(host.DiskID(name))
	must(e.t, err)
	return d
}

// use attaches a disk for a while.
func (e *engine) use(name string, do func(c *chain.Chain)) {
	e.t.Helper()
	o, err := e.vols.OpenForAttach(ctx, host.DiskID(name), false)
	must(e.t, err)
	must(e.t, o.Dir.Close())
	c, err := chain.Open(e.dir(name), volume.Refs(o.Links), chain.Options{Pending: &chain.MemoryPending{}, Format: vmdk.Thin, Locks: true})
	must(e.t, err)
	do(c)
	must(e.t, c.Close(), e.vols.Release(ctx, host.DiskID(name), o.Epoch, false))
}

func (e *engine) snapshot(disk, name string) {
	e.t.Helper()
	_, err := e.vols.Snapshot(ctx, host.SnapshotSpec{Name: name, Disk: host.DiskID(disk)}, time.Time{}, nil)
	must(e.t, err)
}

// Open implements san.Source: the links of the disk, up to a snapshot where one is asked for.
func (e *engine) Open(_ context.Context, r san.Request) (san.Subject, error) {
	links, err := e.vols.Links(host.DiskID(r.Volume))
	if err != nil {
		return nil, err
	}
	if r.Snapshot != "" {
		links = links[:1] // the tests make one snapshot, which ends at the base
	}
	dir := e.dir(r.Volume)
	c, err := chain.Open(dir, volume.Refs(links), chain.Options{ReadOnly: true, Locks: true})
	if err != nil {
		return nil, err
	}
	return &disk{dir, c, len(links)}, nil
}

type disk struct {
	dir   fsx.Dir
	c     *chain.Chain
	links int
}

func (d *disk) Dir() fsx.Dir { return d.dir }
func (d *disk) Size() int64  { return d.c.Size() }
func (d *disk) Close() error { return d.c.Close() }
func (d *disk) Writable() error {
	if d.links > 1 {
		return fault.New(fault.Precondition, "Use NBD until its snapshots are consolidated.", "the disk has snapshots")
	}
	return nil
}

func (d *disk) Runs() iter.Seq2[san.Run, error] {
	return func(yield func(san.Run, error) bool) {
		for x, err := range d.c.Map(0, d.c.Size()) {
			r := san.Run{Off: x.Start, Len: x.Length, File: x.File, FileOff: x.Offset}
			if err == nil && x.File == "" && x.Data && !x.Zero {
				err = fault.New(fault.Unsupported, "Use NBD.", "the disk is compressed")
			}
			if !yield(r, err) {
				return
			}
		}
	}
}

// TestComposedMaps: what a node reads by a read-only map of a chain, of every type of disk and up to every link, is what the
// engine reads.
func TestComposedMaps(t *testing.T) {
	for _, typ := range []host.DiskType{host.MonolithicFlat, host.MonolithicSparse, host.TwoGbMaxExtentSparse, host.TwoGbMaxExtentFlat, host.VMFS, host.VMFSSparse} {
		t.Run(string(typ), func(t *testing.T) {
			r := newRig(t, 128<<20, store.FormatOptions{ExtentSize: 256 << 10, AreaSize: 256 << 10})
			e := newEngine(t, r.store)
			r.config.Source = e
			r.server = san.NewServer(ctx, r.config)
			e.create("v", host.Thin, typ)
			rng := rand.New(rand.NewPCG(1, uint64(len(typ))))
			scribble := func(c *chain.Chain) {
				for range 12 {
					off := rng.Int64N(diskSize/512-300) * 512
					p := make([]byte, (1+rng.IntN(256))*512)
					for i := range p {
						p[i] = byte(rng.Uint32())
					}
					_, err := c.WriteAt(p, off)
					must(t, err)
				}
				must(t, c.Discard(2<<20, 256<<10), c.WriteZeroes(5<<20, 100<<10))
			}
			e.use("v", scribble)
			e.snapshot("v", "s")
			e.use("v", scribble)
			for _, snapshot := range []string{"", "s"} {
				m, err := r.server.Get(ctx, san.Request{Volume: "v", Snapshot: snapshot, Node: "n", Mode: san.ReadOnly})
				if typ == host.VMFSSparse { // the grains of COWD begin anywhere
					if !errors.Is(err, fault.Unsupported) || len(r.server.Outstanding()) > 0 {
						t.Errorf("a map with grains that are not aligned: %v", err)
					}
					continue
				}
				must(t, err)
				sub, err := e.Open(ctx, san.Request{Volume: "v", Snapshot: snapshot})
				must(t, err)
				want, got := make([]byte, diskSize), make([]byte, diskSize)
				_, err = sub.(*disk).c.ReadAt(want, 0)
				must(t, err, sub.Close())
				_, err = r.mapper(m).ReadAt(got, 0)
				must(t, err)
				if !bytes.Equal(got, want) || bytes.Equal(got, make([]byte, diskSize)) || len(m.Extents) < 4 {
					t.Errorf("snapshot %q: %d extents, alike %v", snapshot, len(m.Extents), bytes.Equal(got, want))
				}
			}
			if typ != host.VMFSSparse && r.kind("v", "", "w", san.ReadWrite) != fault.InUse { // the read-only maps are out
				t.Error("a read-write map beside read-only ones")
			}
		})
	}
}

// loop makes a loop device over a file.
func loop(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("losetup", "--find", "--show", path).CombinedOutput()
	if err != nil {
		t.Skipf("losetup: %v: %s", err, out)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", dev).CombinedOutput(); err != nil {
			t.Errorf("losetup --detach: %v: %s", err, out)
		}
	})
	return dev
}

// TestTwoPaths: the owner has the LUN by one device, a node by another, each with a page cache of its own. What one writes the
// other reads, at once and always; a file system that the node makes on its map is whole where the owner exports it.
func TestTwoPaths(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("loop devices need root")
	}
	path := filepath.Join(t.TempDir(), "lun")
	must(t, os.WriteFile(path, nil, 0o600), os.Truncate(path, 96<<20))
	open := func(dev string) fsx.File {
		f, err := fsx.OpenDevice(dev, fsx.ReadWrite|fsx.Direct)
		must(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	a, b := open(loop(t, path)), open(loop(t, path))
	_, err := store.Format(a, store.FormatOptions{AreaSize: 1 << 20})
	must(t, err)
	s, err := store.Open(a, store.Options{})
	must(t, err)
	e := newEngine(t, s)
	e.create("v", host.EagerZeroedThick, host.MonolithicFlat)
	c := newClock()
	server := san.NewServer(ctx, san.Config{Store: s, Source: e, Clock: c, LeaseOnly: true})
	m, err := server.Get(ctx, san.Request{Volume: "v", Node: "node", Mode: san.ReadWrite})
	must(t, err)
	d, err := san.NewMapper(m, san.MapperConfig{LUNs: []fsx.File{b}, Sent: c.Now(), Clock: c, Client: server})
	must(t, err)
	links, err := e.vols.Links(host.DiskID("v"))
	must(t, err)
	owner, err := chain.Open(e.dir("v"), volume.Refs(links), chain.Options{ReadOnly: true})
	must(t, err)
	defer owner.Close()
	p, q := make([]byte, 1000), make([]byte, 1000)
	for i := range 200 { // the owner looks before and after each write, so that a cache would be stale
		for j := range p {
			p[j] = byte(i + j)
		}
		off := int64(i%7)*512 + int64(i%3)<<20 // in the same blocks again and again, in parts of them
		_, err := owner.ReadAt(q, off)
		must(t, err)
		_, err = d.WriteAt(p, off)
		must(t, err)
		_, err = owner.ReadAt(q, off)
		must(t, err)
		if !bytes.Equal(p, q) {
			t.Fatalf("write %d at %d: the owner does not see it", i, off)
		}
	}
	image := filepath.Join(t.TempDir(), "fs")
	must(t, os.WriteFile(image, nil, 0o600), os.Truncate(image, diskSize))
	run(t, "mkfs.ext4", "-q", image)
	content, err := os.ReadFile(image)
	must(t, err)
	_, err = d.WriteAt(content, 0)
	must(t, err, d.Flush(), d.Return(ctx), owner.Close())
	out := filepath.Join(t.TempDir(), "out")
	exported(t, e.dir("v"), out)
	run(t, "qemu-img", "compare", "-f", "vmdk", "-F", "raw", filepath.Join(out, "disk.vmdk"), image)
	run(t, "e2fsck", "-fn", filepath.Join(out, "disk-flat.vmdk"))
	must(t, s.Close())
	r, err := store.Check(b)
	must(t, err)
	if len(r.Problems)+len(r.Notes) > 0 {
		t.Errorf("%+v", r)
	}
}

func exported(t *testing.T, from fsx.Dir, to string) {
	t.Helper()
	must(t, os.Mkdir(to, 0o700))
	d, err := fsx.OpenRoot(to)
	must(t, err)
	defer d.Close()
	names, err := from.List()
	must(t, err)
	for _, name := range names {
		src, err := from.Open(name, fsx.ReadOnly)
		must(t, err)
		dst, err := d.Open(name, fsx.ReadWrite|fsx.Create)
		must(t, err)
		i, err := src.Stat()
		must(t, err, dst.Clone(src, 0, 0, i.Size), dst.Close(), src.Close())
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}
