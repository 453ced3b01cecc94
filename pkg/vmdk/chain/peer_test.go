package chain_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// tool runs a program of Debian's qemu-utils.
func tool(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	if _, err := exec.LookPath(name); err != nil {
		t.Fatalf("%s is missing; install it with: apt-get install qemu-utils", name)
	}
	cmd := exec.Command(name, args...)
	out, err := cmd.Output()
	if err != nil {
		msg := ""
		if x, ok := err.(*exec.ExitError); ok {
			msg = string(x.Stderr)
		}
		t.Fatalf("%s %v: %v\n%s%s", name, args, err, out, msg)
	}
	return out
}

// command runs a program that may fail.
func command(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).CombinedOutput()
	return string(out), err
}

func (d *disk) head() string { return filepath.Join(d.path, d.refs[len(d.refs)-1].Name) }

// qemuReads compares what qemu-img reads (qemuConverts) with what must be there, and its map with ours (qemuMaps).
func (d *disk) qemuReads() {
	d.t.Helper()
	d.qemuConverts()
	d.qemuMaps()
}

func (d *disk) qemuConverts() {
	d.t.Helper()
	raw := filepath.Join(d.path, "out.raw")
	tool(d.t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", d.head(), raw)
	got, err := os.ReadFile(raw)
	if err != nil {
		d.t.Fatal(err)
	}
	if err := os.Remove(raw); err != nil {
		d.t.Fatal(err)
	}
	same(d.t, "qemu-img convert", got, d.want, 0)
}

// piece is a run of `qemu-img map --output=json`.
type piece struct {
	Start, Length int64
	Depth         int
	Zero, Data    bool
	Offset        *int64
}

func (d *disk) qemuMaps() {
	d.t.Helper()
	var theirs []piece
	if err := json.Unmarshal(tool(d.t, "qemu-img", "map", "-f", "vmdk", "--output=json", d.head()), &theirs); err != nil {
		d.t.Fatal(err)
	}
	c, err := chain.Open(d.dir, d.refs, chain.Options{ReadOnly: true})
	if err != nil {
		d.t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			d.t.Error(err)
		}
	}()
	i, at := 0, int64(0)
	for x, err := range c.Map(0, c.Size()) {
		if err != nil {
			d.t.Fatal(err)
		}
		if x.Start != at {
			d.t.Fatalf("our map has %+v after byte %d", x, at)
		}
		at += x.Length
		for off := x.Start; off < x.Start+x.Length; {
			for i < len(theirs) && theirs[i].Start+theirs[i].Length <= off {
				i++
			}
			if i == len(theirs) {
				d.t.Fatalf("qemu's map ends before %d", off)
			}
			q := theirs[i]
			wrong := q.Zero != x.Zero || q.Data != x.Data || x.Present && q.Depth != x.Depth || (q.Offset != nil) != (x.File != "")
			if !wrong && x.Data && x.Offset+off-x.Start != *q.Offset+off-q.Start {
				wrong = true
			}
			if wrong {
				d.t.Fatalf("at %d we map %+v, qemu %+v", off, x, q)
			}
			off = q.Start + q.Length
		}
	}
	if at != c.Size() {
		d.t.Fatalf("our map ends at %d of %d", at, c.Size())
	}
}

// qemuWrites lets qemu-io write; the disk must be closed. Into a child of several extents it writes whole grains only:
// qemu 7.2 fills a new grain from the parent at the offset inside the extent, not at that of the disk (block/vmdk.c,
// get_cluster_offset subtracts the extent's start before get_whole_grain reads the backing file).
func (d *disk) qemuWrites(n int) {
	d.t.Helper()
	d.makeTables()
	args := []string{"-f", "vmdk"}
	size, unit := int64(len(d.want)), int64(512)
	if xs := d.extents(); len(d.refs) > 1 && len(xs) > 1 {
		for _, x := range xs {
			unit = max(unit, x.GrainSize)
		}
	}
	for range n {
		off := d.r.Int64N(size/unit) * unit
		k := min((d.r.Int64N(max(102400/unit, 1))+1)*unit, size-off)
		fill := byte(d.r.IntN(255) + 1)
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", fill, off, k))
		for i := range d.want[off : off+k] {
			d.want[off+int64(i)] = fill
		}
	}
	tool(d.t, "qemu-io", append(args, d.head())...)
}

// makeTables makes all tables of a COWD head: where one is missing, qemu 7.2 writes over the header (block/vmdk.c,
// get_cluster_offset allocates no table).
func (d *disk) makeTables() {
	d.t.Helper()
	x := d.extents()[0]
	if !strings.HasSuffix(x.Name, "-delta.vmdk") {
		return
	}
	d.open()
	for off := int64(0); off < x.Size; off += 4096 * x.GrainSize {
		if _, err := d.c.WriteAt([]byte{7}, off); err != nil {
			d.t.Fatal(err)
		}
		d.want[off] = 7
	}
	d.close()
}

// extents are those of the head.
func (d *disk) extents() []vmdk.ExtentInfo {
	d.t.Helper()
	l, err := vmdk.Open(d.dir, d.refs[len(d.refs)-1].Name, vmdk.Options{})
	if err != nil {
		d.t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		d.t.Fatal(err)
	}
	return l.Info().Extents
}

// qemuChild lets qemu-img put a child on top.
func (d *disk) qemuChild() {
	d.t.Helper()
	name := d.childName()
	sub := []string{"monolithicSparse", "twoGbMaxExtentSparse"}[d.r.IntN(2)]
	// A relative hint, as seen from the child.
	tool(d.t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat="+sub, "-F", "vmdk", "-b", d.refs[len(d.refs)-1].Name, filepath.Join(d.path, name))
	d.refs = append(d.refs, chain.Ref{Name: name})
}

func (d *disk) steps(n int) {
	d.t.Helper()
	for range n {
		d.step()
	}
	d.checkAll()
}

// round: we write and qemu reads, qemu writes and we read.
func (d *disk) round(n int) {
	d.t.Helper()
	n = fewer(n)
	d.open()
	d.steps(n)
	d.close()
	d.sound()
	d.qemuReads()
	d.qemuWrites(8)
	d.open()
	d.checkAll()
	d.steps(n / 2)
	d.close()
	d.sound()
	d.qemuReads()
}

// grow makes the disk larger while it is open: often across the end of a grain, a table or an extent.
func (d *disk) grow() {
	d.t.Helper()
	add := d.r.Int64N(5*mib)/512*512 + 512
	if d.r.IntN(2) == 0 {
		add *= 8
	}
	size := int64(len(d.want)) + add
	if err := d.c.Grow(context.Background(), size); err != nil {
		d.t.Fatalf("grow to %d: %v", size, err)
	}
	d.want = append(d.want, make([]byte, add)...)
	if d.c.Size() != size {
		d.t.Fatalf("the size is %d after growing to %d", d.c.Size(), size)
	}
}

// TestGrowHidesTail: what another program left behind the end of a disk, in its last grain, is not read when the disk becomes larger.
func TestGrowHidesTail(t *testing.T) {
	for typ, file := range map[vmdk.Type]string{vmdk.MonolithicSparse: "disk.vmdk", vmdk.TwoGbMaxExtentSparse: "disk-s001.vmdk", vmdk.VMFSSparse: "disk-delta.vmdk"} {
		t.Run(string(typ), func(t *testing.T) {
			d := newDisk(t, seeded(t), vmdk.CreateParams{Type: typ, Capacity: mib + 512, GrainSectors: 64})
			d.open()
			d.write(mib, fillOf(512, 0xab))
			d.close()
			name := filepath.Join(d.path, file)
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			at := bytes.Index(b, fillOf(512, 0xab)) // the grain may end with the file
			b = append(b, make([]byte, max(0, at+64*512-len(b)))...)
			copy(b[at+512:], fillOf(63*512, 0xee))
			if err := os.WriteFile(name, b, 0o600); err != nil {
				t.Fatal(err)
			}
			d.open()
			d.grow()
			d.checkAll()
			d.close()
			d.sound()
			d.qemuReads()
		})
	}
}

func (d *disk) sound() {
	d.t.Helper()
	for _, r := range d.refs {
		rep, err := vmdk.Check(context.Background(), d.dir, r.Name)
		if err != nil {
			d.t.Fatal(err)
		}
		if !rep.Sound() {
			d.t.Fatalf("check %s: %v", r.Name, rep.Problems)
		}
	}
}

const mib = 1 << 20

var peerDisks = []struct {
	name string
	p    vmdk.CreateParams
}{
	{"flat-thin", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 8 * mib}},
	{"flat-zeroedthick", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 5*mib + 7*512, Format: vmdk.ZeroedThick}},
	{"flat-eager", vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 5 * mib, Format: vmdk.EagerZeroedThick}},
	{"split-flat", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentFlat, Capacity: 5 * mib, ExtentSize: 2 * mib}},
	{"sparse", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 9 * mib}},
	{"sparse-odd", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 40*mib + 37*512}},
	{"split-sparse", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 9*mib + 512, ExtentSize: 2 * mib}},
	{"sparse-small-grains", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 5 * mib, GrainSectors: 8}},
	{"embedded", vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: 6*mib + 5*512}},
	{"vmfs-thin", vmdk.CreateParams{Type: vmdk.VMFS, Capacity: 5*mib + 512}},
	{"vmfs-eager", vmdk.CreateParams{Type: vmdk.VMFS, Capacity: 3 * mib, Format: vmdk.EagerZeroedThick}},
	{"cowd", vmdk.CreateParams{Type: vmdk.VMFSSparse, Capacity: 5*mib + 3*512}},
	{"cowd-large-grains", vmdk.CreateParams{Type: vmdk.VMFSSparse, Capacity: 40*mib + 512, GrainSectors: 16}},
}

func TestPeerBase(t *testing.T) {
	chosen := sample(t, len(peerDisks), 3)
	for i, k := range peerDisks {
		if !chosen(i) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			d := newDisk(t, seeded(t), k.p)
			d.o = chain.Options{Direct: d.r.IntN(2) == 0, Format: k.p.Format, Pending: &chain.MemoryPending{Max: 1 + d.r.IntN(200)}, Locks: true}
			t.Logf("direct=%v", d.o.Direct)
			d.round(40)
			d.open()
			d.grow()
			d.steps(20)
			d.close()
			d.sound()
			d.qemuReads()
			d.qemuWrites(4)
			d.open()
			d.grow()
			d.checkAll()
		})
	}
}

func TestPeerChain(t *testing.T) {
	chosen := sample(t, len(peerDisks), 2)
	for i, k := range peerDisks {
		if !chosen(i) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			d := newDisk(t, seeded(t), k.p)
			d.o = chain.Options{Direct: true, Locks: true}
			d.open()
			d.steps(20)
			d.close()
			for range 2 {
				if d.r.IntN(2) == 0 {
					d.qemuChild()
				} else {
					d.addChild(vmdk.CreateParams{Type: []vmdk.Type{vmdk.MonolithicSparse, vmdk.TwoGbMaxExtentSparse, vmdk.VMFSSparse}[d.r.IntN(3)], ExtentSize: 4 * mib})
				}
				d.round(24)
			}
		})
	}
}

// TestPeerMade reads and writes what qemu-img made.
func TestPeerMade(t *testing.T) {
	for _, sub := range []string{"monolithicSparse", "monolithicFlat", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"} {
		if raceDetector && sub != "twoGbMaxExtentSparse" {
			continue
		}
		for _, opt := range []string{"", ",zeroed_grain=on", ",compat6=on"} {
			if opt == ",zeroed_grain=on" && sub != "monolithicSparse" && sub != "twoGbMaxExtentSparse" {
				continue
			}
			t.Run(sub+opt, func(t *testing.T) {
				d := newDisk(t, seeded(t), vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 6*mib + 11*512})
				d.refs[0].Name = "theirs.vmdk"
				tool(t, "qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat="+sub+opt, d.head(), fmt.Sprint(len(d.want)))
				d.qemuWrites(10)
				if opt == ",zeroed_grain=on" {
					tool(t, "qemu-io", "-f", "vmdk", "-c", "write -z 1M 1M", d.head())
					clear(d.want[mib : 2*mib])
				}
				d.round(24)
				d.qemuChild()
				d.round(24)
			})
		}
	}
}
