package chain_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// snapshot puts a child on the open disk and checks what it leaves.
func (d *disk) snapshot() {
	d.t.Helper()
	name := d.childName()
	if err := d.c.Snapshot(context.Background(), chain.SnapshotParams{Child: name, ExtentSize: 4 * mib}); err != nil {
		d.t.Fatalf("snapshot: %v", err)
	}
	d.refs = append(d.refs, chain.Ref{Name: name})
	links := d.c.Links()
	if len(links) != len(d.refs) || links[len(links)-1].Name != name || links[len(links)-2].Unclean() {
		d.t.Fatalf("after a snapshot the chain has %d links, the head is %s", len(links), links[len(links)-1].Name)
	}
}

// qemuSees compares what qemu reads of a link that may be in use.
func (d *disk) qemuSees(name string, want []byte) {
	d.t.Helper()
	raw := filepath.Join(d.t.TempDir(), "raw")
	tool(d.t, "qemu-img", "convert", "-U", "-f", "vmdk", "-O", "raw", filepath.Join(d.path, name), raw)
	got, err := os.ReadFile(raw)
	if err != nil {
		d.t.Fatal(err)
	}
	same(d.t, "qemu-img convert "+name, got, want, 0)
}

// TestSnapshot: each snapshot keeps what the disk was, whatever comes later, for us and for qemu.
func TestSnapshot(t *testing.T) {
	chosen := sample(t, len(peerDisks), 2)
	for i, k := range peerDisks {
		if !chosen(i) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			d := newDisk(t, seeded(t), k.p)
			pending := &chain.MemoryPending{Max: 100}
			d.o = chain.Options{Direct: d.r.IntN(2) == 0, Pending: pending, Locks: true, Format: k.p.Format}
			d.open()
			var kept [][]byte
			for i := range 3 {
				d.steps(fewer(20))
				head := d.refs[len(d.refs)-1].Name
				d.snapshot()
				if n := len(pending.Load()); n > 0 {
					t.Fatalf("%d pending entries after a snapshot", n)
				}
				kept = append(kept, bytes.Clone(d.want))
				d.qemuSees(d.head()[len(d.path)+1:], d.want)
				d.steps(fewer(10))
				if i == 1 {
					d.grow()
				}
				d.qemuSees(head, kept[i])
			}
			d.close()
			d.sound()
			for i, want := range kept {
				c, err := chain.Open(d.dir, d.refs[:i+1], chain.Options{ReadOnly: true})
				if errors.Is(err, fault.Damaged) { // a step that no manifest records
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				got := make([]byte, c.Size())
				if _, err := c.ReadAt(got, 0); err != nil {
					t.Fatal(err)
				}
				same(t, fmt.Sprintf("snapshot %d", i), got, want, 0)
				if err := c.Close(); err != nil {
					t.Fatal(err)
				}
			}
			for i := range d.refs {
				l, err := vmdk.Open(d.dir, d.refs[i].Name, vmdk.Options{})
				if err != nil {
					t.Fatal(err)
				}
				d.refs[i].Size = l.Size()
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
			}
			d.qemuReadsSteps()
		})
	}
}

// qemuReadsSteps is qemuReads without the map, where the links differ in size.
func (d *disk) qemuReadsSteps() {
	d.t.Helper()
	d.qemuSees(d.refs[len(d.refs)-1].Name, d.want)
	d.open()
	d.checkAll()
}

// TestSnapshotWhileWritten: writers of their own grains and a reader go on through snapshots. What a writer was told
// before a snapshot began is in it, what it began after the snapshot returned is not.
func TestSnapshotWhileWritten(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 4 * mib})
	d.o = chain.Options{Direct: true, Pending: &chain.MemoryPending{Max: 64}, Locks: true}
	d.open()
	const writers = 4
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var acked [writers]atomic.Uint64
	for w := range int64(writers) {
		wg.Go(func() {
			b := make([]byte, 512)
			for i := uint64(1); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				binary.LittleEndian.PutUint64(b, i)
				for at := w * mib; at < (w+1)*mib; at += 256 << 10 {
					if _, err := d.c.WriteAt(b, at); err != nil {
						t.Errorf("write: %v", err)
						return
					}
				}
				acked[w].Store(i)
			}
		})
	}
	for range 6 {
		var before, after [writers]uint64
		for w := range acked {
			before[w] = acked[w].Load()
		}
		d.snapshot()
		for w := range acked {
			after[w] = acked[w].Load() + 1 // and what is under way
		}
		c, err := chain.Open(d.dir, d.refs[:len(d.refs)-1], chain.Options{ReadOnly: true})
		if err != nil {
			t.Fatal(err)
		}
		for w := range acked {
			got := make([]byte, 8)
			if _, err := c.ReadAt(got, int64(w)*mib); err != nil {
				t.Fatal(err)
			}
			if v := binary.LittleEndian.Uint64(got); v < before[w] || v > after[w] {
				t.Errorf("writer %d had written %d before the snapshot and %d after it, which has %d", w, before[w], after[w], v)
			}
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	wg.Wait()
	d.close()
	d.sound()
}

// TestSnapshotRefused: a commit that fails leaves the old head in use and no files; one whose outcome nobody knows poisons
// the disk and leaves them.
func TestSnapshotRefused(t *testing.T) {
	d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 8 * mib})
	d.open()
	d.steps(10)
	before, err := d.dir.List()
	if err != nil {
		t.Fatal(err)
	}
	no := fault.New(fault.InUse, "", "somebody else won")
	snap := func(p chain.SnapshotParams) error { return d.c.Snapshot(t.Context(), p) }
	for what, c := range map[string]struct {
		p    chain.SnapshotParams
		want fault.Kind
	}{
		"commit": {chain.SnapshotParams{Child: "disk-000001.vmdk", Commit: func(_, _ *vmdk.Info) error { return no }}, fault.InUse},
		"before": {chain.SnapshotParams{Child: "disk-000001.vmdk", Before: func() error { return no }}, fault.InUse},
		"name":   {chain.SnapshotParams{Child: "disk.vmdk"}, fault.Invalid},
		"stem":   {chain.SnapshotParams{Child: "disk-flat.vmdk"}, fault.Invalid},
	} {
		if err := snap(c.p); fault.KindOf(err) != c.want {
			t.Errorf("%s: %v, want %s", what, err, c.want)
		}
		after, err := d.dir.List()
		if err != nil || fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("%s: files %v, before %v, %v", what, after, before, err)
		}
	}
	d.steps(10)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.c.Snapshot(ctx, chain.SnapshotParams{Child: "disk-000001.vmdk"}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	d.steps(5)
	unknown := fault.New(fault.Poisoned, "", "no answer")
	if err := snap(chain.SnapshotParams{Child: "disk-000001.vmdk", Commit: func(_, _ *vmdk.Info) error { return unknown }}); !errors.Is(err, fault.Poisoned) {
		t.Fatalf("unknown outcome: %v", err)
	}
	if _, err := d.c.ReadAt(make([]byte, 1), 0); !errors.Is(err, fault.Poisoned) {
		t.Errorf("read after an unknown outcome: %v", err)
	}
	if _, err := d.dir.Stat("disk-000001.vmdk"); errors.Is(err, fs.ErrNotExist) {
		t.Error("the child of an unknown outcome is gone")
	}
	if err := d.c.Close(); !errors.Is(err, fault.Poisoned) {
		t.Errorf("close: %v", err)
	}
	// Either answer is good now: the old head, or the child.
	d.open()
	d.checkAll()
	d.close()
}
