package takeover

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// kept is how many snapshots a disk under load has at most; the oldest go, and their links are merged.
const kept = 3

// snapshots takes n snapshots of the disk in a row, deletes the oldest ones, and kills a process after every tenth.
func snapshots(t *testing.T, p *product, n int) {
	t.Helper()
	var ids []string
	retry := func(what string, do func() error) {
		t.Helper()
		for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(20 * time.Millisecond) {
			err := do()
			switch fault.KindOf(err) {
			case "":
				return
			case fault.Unavailable, fault.Timeout, fault.InProgress, fault.Exhausted: // a death, a merge, 32 links
			default:
				t.Fatalf("%s: %v\n%s", what, err, p.log())
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s: %v\n%s", what, err, p.log())
			}
		}
	}
	deepest, start := 0, time.Now()
	for i := range n {
		retry("snapshot", func() error {
			s, err := p.client.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: fmt.Sprint(t.Name(), i), Disk: p.id})
			if err == nil {
				ids = append(ids, s.ID)
			}
			return err
		})
		if len(ids) > kept {
			retry("delete the snapshot", func() error { return p.client.DeleteSnapshot(t.Context(), ids[0]) })
			ids = ids[1:]
		}
		retry("get", func() error {
			d, err := p.client.Get(t.Context(), p.id)
			deepest = max(deepest, len(d.Links))
			return err
		})
		if i%10 == 9 {
			p.kill(t)
		}
	}
	t.Logf("%d snapshots in %v, at most %d links", n, time.Since(start).Round(time.Millisecond), deepest)
	for _, id := range ids {
		retry("delete the snapshot", func() error { return p.client.DeleteSnapshot(t.Context(), id) })
	}
}

// consolidated waits until the disk has one link, and returns it.
func consolidated(t *testing.T, p *product, d time.Duration) host.Disk {
	t.Helper()
	var last host.Disk
	for deadline := time.Now().Add(d); ; time.Sleep(20 * time.Millisecond) {
		now, err := p.client.Get(t.Context(), p.id)
		if err == nil {
			last = now
			if len(now.Links) == 1 && now.Consolidation == nil {
				return now
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: one link: %d links, %+v, %v\n%s", d, len(last.Links), last.Consolidation, err, p.log())
		}
	}
}

// TestSnapshotsUnderLoad: 100 snapshots in a row while fio verifies on the block device, or writers that remember what was
// acknowledged use an XFS on it; the oldest are deleted and their links merged meanwhile, processes die, and in the end the
// disk has one link and everything that was written.
func TestSnapshotsUnderLoad(t *testing.T) {
	need(t)
	n := 100
	if testing.Short() {
		n = 20
	}
	t.Run("fio", func(t *testing.T) {
		rnd := seeded(t)
		p, r := attachProduct(t, host.DiskSpec{}, "worker", "hostd", "node", "upgrade")
		whileLoaded(t, r, fio(t, r.loop.Path(), r.disk.size, rnd.Uint64()>>1), func() { snapshots(t, p, n) })
		oneAndWhole(t, p, r)
	})
	t.Run("xfs", func(t *testing.T) {
		rnd := seeded(t)
		p := newProduct(t, "", "worker", "hostd", "node", "upgrade")
		r := p.attach(t, p.create(t, host.DiskSpec{Size: 320 << 20}))
		mkfs(t, "xfs", r.loop.Path())
		m := mount(t, "xfs", r.loop.Path())
		ws := newWriters()
		whileLoaded(t, r, writersUntil(ws, m.path, rnd.Uint64()), func() { snapshots(t, p, n) })
		m.umount(t, r.loop.Path())
		m = mount(t, "xfs", r.loop.Path())
		for _, w := range ws {
			if err := w.check(m.path); err != nil || w.writes == 0 {
				t.Errorf("%s, %d writes: %v", w.file, w.writes, err)
			}
		}
		m.umount(t, r.loop.Path())
		oneAndWhole(t, p, r)
	})
}

// oneAndWhole: the disk becomes one link and reads as before.
func oneAndWhole(t *testing.T, p *product, r *rig) {
	t.Helper()
	sum := r.sum(t)
	r.disk.links = refs(consolidated(t, p, 3*time.Minute).Links)
	if got := r.sum(t); got != sum {
		t.Error("consolidation changed what the disk reads")
	}
	detachProduct(t, p, r)
	r.disk.verify(t, sum)
}

// whileLoaded does something while work runs on the device.
func whileLoaded(t *testing.T, r *rig, work func(stop <-chan struct{}) error, do func()) {
	t.Helper()
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- work(stop) }()
	ended := false
	end := func() {
		if ended {
			return
		}
		ended = true
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	defer end() // also when do fails the test
	r.busy(t)
	do()
	r.busy(t)
	end()
}

func mkfs(t *testing.T, fstype, device string) {
	t.Helper()
	bin, err := exec.LookPath("mkfs." + fstype)
	if err != nil {
		t.Skipf("mkfs.%s is not installed (apt-get install xfsprogs e2fsprogs)", fstype)
	}
	if out, err := exec.Command(bin, device).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, bytes.TrimSpace(out))
	}
}

// files are the files of a volume's directory, but for manifests, and what is in them.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	names, err := filepath.Glob(filepath.Join(dir, "*.vmdk"))
	if err != nil || len(names) == 0 {
		t.Fatalf("%v, %v", names, err)
	}
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		all[filepath.Base(name)] = hash(t, f)
		f.Close()
	}
	return all
}

// mountRO mounts a file system read-only; its journal is replayed, on the device.
func mountRO(t *testing.T, fstype, device string) *mounted {
	t.Helper()
	params := []sys.MountParam{{Key: "source", Value: device}, {Key: "ro"}}
	if fstype == "xfs" {
		params = append(params, sys.MountParam{Key: "nouuid"})
	}
	m, err := sys.DetachedMount(fstype, params, 0)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := sys.Fd(m)
	if err != nil {
		t.Fatal(err)
	}
	return &mounted{m, fmt.Sprintf("/proc/self/fd/%d", fd)}
}

// TestReaders: a snapshot of a mounted file system, whose journal is dirty, is restored and mounted read-only by two nodes at
// once, beside its source. Their workers die while they read. Both see what was synced before the snapshot, and not a byte of
// the restored disk's files changes.
func TestReaders(t *testing.T) {
	need(t)
	for _, fstype := range []string{"ext4", "xfs"} {
		t.Run(fstype, func(t *testing.T) {
			rnd := seeded(t)
			source := newProduct(t, "")
			src := source.attach(t, source.create(t, host.DiskSpec{Size: 320 << 20}))
			mkfs(t, fstype, src.loop.Path())
			m := mount(t, fstype, src.loop.Path())
			content := make([]byte, 3<<20)
			for i := range content {
				content[i] = byte(rnd.Uint32())
			}
			writeSynced(t, filepath.Join(m.path, "synced"), content)
			snap, err := source.client.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: t.Name(), Disk: source.id})
			if err != nil {
				t.Fatal(err)
			}
			restored, err := source.client.Create(t.Context(), host.DiskSpec{Name: prefix() + t.Name() + "-restored", Datastore: "a", Size: 320 << 20,
				Source: &host.Source{Snapshot: snap.ID}})
			if err != nil {
				t.Fatal(err)
			}
			dir := filepath.Join(source.store, "volumes", restored.ID)
			before := files(t, dir)
			var readers []*product
			var rigs []*rig
			for range 2 {
				p := newProduct(t, source.store)
				p.readOnly = true
				r := p.attach(t, restored)
				readers, rigs = append(readers, p), append(rigs, r)
			}
			var mounts []*mounted
			for i, r := range rigs {
				mounts = append(mounts, mountRO(t, fstype, r.loop.Path()))
				readBack(t, filepath.Join(mounts[i].path, "synced"), content)
			}
			for i, p := range readers {
				p.victims = []string{"worker", "hostd"}
				for range 2 {
					p.kill(t)
					dropCaches(t, rigs[i].loop.Path())
					readBack(t, filepath.Join(mounts[i].path, "synced"), content)
				}
			}
			if err := os.WriteFile(filepath.Join(mounts[0].path, "new"), content, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("a write: %v", err)
			}
			for i, p := range readers {
				mounts[i].umount(t, rigs[i].loop.Path())
				detachProduct(t, p, rigs[i])
			}
			for name, sum := range files(t, dir) {
				if before[name] != sum {
					t.Errorf("%s was changed by its readers", name)
				}
			}
			m.umount(t, src.loop.Path())
			detachProduct(t, source, src)
		})
	}
}

func writeSynced(t *testing.T, path string, content []byte) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Write(content)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func readBack(t *testing.T, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s: other content, %v", path, err)
	}
}

// dropCaches makes the next read of a device come from its server.
func dropCaches(t *testing.T, device string) {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := sys.Fd(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fadvise(fd, 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Error(err)
	}
}
