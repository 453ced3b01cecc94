package chain_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// peerKinds are the formats of TestPeerSequences, each with what plays one sequence.
var peerKinds = []struct {
	typ  vmdk.Type
	play func(p *peer)
}{
	{vmdk.MonolithicSparse, (*peer).disks},
	{vmdk.TwoGbMaxExtentSparse, (*peer).disks},
	{vmdk.MonolithicFlat, (*peer).disks},
	{vmdk.TwoGbMaxExtentFlat, (*peer).disks},
	{vmdk.VMFS, (*peer).disks},
	{vmdk.VMFSSparse, (*peer).disks},
	{vmdk.Custom, (*peer).custom},
	{vmdk.StreamOptimized, (*peer).stream},
}

// TestPeerSequences plays random sequences on every format that we write: we and qemu write in turn, the disk grows, gets children
// and loses them; then we, qemu and libvmdk must read the same. make peer-long runs a thousand of each; KIND chooses a format, COUNT
// how many, and SEED the first one: the i-th has the seed SEED+i.
func TestPeerSequences(t *testing.T) {
	count, seed := 5, seeded(t).Uint64()>>1
	if raceDetector {
		count = 1
	}
	if n := os.Getenv("COUNT"); n != "" {
		v, err := strconv.Atoi(n)
		if err != nil {
			t.Fatalf("COUNT=%q: %v", n, err)
		}
		count = v
	}
	if s := os.Getenv("SEED"); s != "" {
		v, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("SEED=%q: %v", s, err)
		}
		seed = v
	}
	for kind, k := range peerKinds {
		if only := os.Getenv("KIND"); only != "" && only != string(k.typ) {
			continue
		}
		t.Run(string(k.typ), func(t *testing.T) {
			t.Parallel()
			second := startLibvmdk(t)
			done := peerCount{}
			for i := range uint64(count) {
				one := t.Run("sequence", func(t *testing.T) {
					p := &peer{t: t, typ: k.typ, r: rand.New(rand.NewPCG(seed+i, uint64(kind))), second: second, peerCount: &done}
					defer func() {
						if t.Failed() {
							t.Logf("again: KIND=%s SEED=%d COUNT=1 make peer-long\n%s", k.typ, seed+i, p.note)
						}
					}()
					k.play(p)
				})
				if !one {
					break
				}
				done.sequences++
			}
			t.Logf("%s: SEED=%d: %d sequences: %d disks read by qemu, %d by libvmdk, %d written by qemu, %d of them no multiple of a grain",
				k.typ, seed, done.sequences, done.qemu, done.libvmdk, done.written, done.odd)
		})
	}
}

// peerCount is what the sequences of one format did.
type peerCount struct{ sequences, qemu, libvmdk, written, odd int }

// peer is one sequence.
type peer struct {
	t      *testing.T
	typ    vmdk.Type
	r      *rand.Rand
	second *libvmdk
	*peerCount
	small   bool   // grains of 4 KiB, which libvmdk 20200926 refuses
	packed  bool   // compressed grains, of which qemu's map says less
	touched bool   // qemu has written
	note    string // for who looks for a failure's cause
}

// capacity is up to four MiB, and mostly no multiple of a grain.
func (p *peer) capacity(grain int64) int64 {
	n := (p.r.Int64N(8192) + 1) * 512
	if p.r.IntN(4) == 0 {
		n = (n + grain - 1) / grain * grain
	}
	if n%grain != 0 {
		p.odd++
	}
	return n
}

// params are those of a random disk of the type.
func (p *peer) params(typ vmdk.Type) vmdk.CreateParams {
	c := vmdk.CreateParams{Type: typ}
	switch {
	case typ == vmdk.VMFSSparse:
		c.GrainSectors = 1 << p.r.IntN(7)
	case typ.Sparse():
		c.GrainSectors = 8 << p.r.IntN(6)
		p.small = p.small || c.GrainSectors == 8
	default:
		c.Format = []vmdk.Format{vmdk.Thin, vmdk.Thin, vmdk.ZeroedThick, vmdk.EagerZeroedThick}[p.r.IntN(4)]
	}
	if typ.Split() {
		c.ExtentSize = mib
	}
	c.Capacity = p.capacity(max(c.GrainSectors, 1) * 512)
	return c
}

// disks plays on a disk whose head, or base for a type that has no parent, is of the format.
func (p *peer) disks() {
	c := p.params(p.typ)
	child := p.typ.Sparse() && p.r.IntN(2) == 0
	if child {
		c = p.params(vmdk.Creatable()[p.r.IntN(len(vmdk.Creatable()))])
	}
	d := newDisk(p.t, p.r, c)
	d.o = chain.Options{Direct: p.r.IntN(2) == 0, Format: c.Format, Pending: &chain.MemoryPending{Max: 1 + p.r.IntN(200)}, Locks: true}
	if child {
		p.write(d, 5)
		d.addChild(p.child(p.typ))
	}
	for range 3 + p.r.IntN(3) {
		p.deed(d)
	}
	p.agree(d)
}

// child are the parameters of a child of the type.
func (p *peer) child(typ vmdk.Type) vmdk.CreateParams {
	c := p.params(typ)
	c.Format = ""
	return c
}

// write is what we do.
func (p *peer) write(d *disk, steps int) {
	d.open()
	for range steps {
		d.step()
	}
	d.record()
	d.close()
}

// deed changes the disk once.
func (p *peer) deed(d *disk) {
	p.t.Helper()
	n := p.r.IntN(12)
	switch {
	case n < 4:
		p.write(d, 6)
	case n < 7:
		p.qemuWrites(d, 5)
	case n == 7:
		d.open()
		d.grow()
		d.step()
		d.record()
		d.close()
	case n == 8 && len(d.refs) < 4:
		d.addChild(p.child(childTypes[p.r.IntN(len(childTypes))]))
		p.write(d, 4)
	case n == 9 && len(d.refs) < 4:
		d.open()
		d.step()
		if err := d.c.Snapshot(context.Background(), chain.SnapshotParams{Child: d.childName(), Type: childTypes[p.r.IntN(len(childTypes))], ExtentSize: mib}); err != nil {
			p.t.Fatal(err)
		}
		d.record()
		d.step()
		d.close()
	case n == 10 && len(d.refs) < 4:
		d.qemuChild()
		p.qemuWrites(d, 3)
	case len(d.refs) > 1:
		d.open()
		dir := []chain.Direction{chain.Down, chain.Up}[p.r.IntN(2)]
		if err := d.merge(chain.MergeParams{Lower: p.r.IntN(len(d.refs) - 1), Direction: dir}); err != nil {
			p.t.Fatalf("merge %s: %v", dir, err)
		}
		d.step()
		d.close()
	}
}

// agree compares what three readers read of the closed disk.
func (p *peer) agree(d *disk) {
	p.t.Helper()
	d.open()
	d.checkAll()
	second := libvmdkCan(d)
	d.close()
	p.sound(d)
	if d.qemuConverts(); !p.packed {
		d.qemuMaps()
	}
	p.qemu++
	if second {
		p.libvmdkReads(d)
	}
}

// sound checks the links. qemu 7.2 leaves the header of a COWD extent as it is when it writes behind the end of what it says is in
// use (block/vmdk.c writes entries only); our next open for writing looks, and the next flush mends it.
func (p *peer) sound(d *disk) {
	p.t.Helper()
	for _, r := range d.refs {
		rep, err := vmdk.Check(context.Background(), d.dir, r.Name)
		if err != nil {
			p.t.Fatal(err)
		}
		for _, x := range rep.Problems {
			if x.Severity > vmdk.Note && (x.Code != vmdk.FreeSectorLow || !p.touched) {
				p.t.Fatalf("check %s: %v", r.Name, rep.Problems)
			}
		}
	}
}

// qemuWrites lets qemu write into the head.
func (p *peer) qemuWrites(d *disk, n int) {
	p.t.Helper()
	d.qemuWrites(n)
	p.touched = true
	p.written++
}

// libvmdkCan tells that libvmdk 20200926 can read the open disk: it takes an entry that says "zeros" for a grain at sector 1, and
// reads nothing behind the end of a parent that is shorter than its child.
func libvmdkCan(d *disk) bool {
	d.t.Helper()
	for _, l := range d.c.Links() {
		if l.Size() != d.c.Size() {
			return false
		}
	}
	for x, err := range d.c.Map(0, d.c.Size()) {
		if err != nil {
			d.t.Fatal(err)
		}
		if x.Present && x.Zero && x.File == "" {
			return false
		}
	}
	return true
}

func (p *peer) libvmdkReads(d *disk) {
	p.t.Helper()
	if p.small {
		return
	}
	sum := sha256.Sum256(d.want)
	if got := p.second.read(p.t, d.path, d.refs); got != hex.EncodeToString(sum[:]) {
		p.t.Fatalf("libvmdk reads %s, want %x", got, sum)
	}
	p.libvmdk++
}

// libvmdk is a process that reads disks with libvmdk.
type libvmdk struct {
	in  io.Writer
	out *bufio.Reader
}

func startLibvmdk(t *testing.T) *libvmdk {
	t.Helper()
	const python = "/usr/bin/python3" // Debian's, for which the package is
	if out, err := exec.Command(python, "-c", "import pyvmdk").CombinedOutput(); err != nil {
		t.Fatalf("libvmdk is missing; install it with: apt-get install python3-libvmdk\n%s", out)
	}
	script, err := filepath.Abs("testdata/libvmdk.py")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(python, script)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("libvmdk: %v", err)
		}
	})
	return &libvmdk{in, bufio.NewReader(out)}
}

// read is the SHA-256 of what the chain reads, or an error's text.
func (l *libvmdk) read(t *testing.T, dir string, refs []chain.Ref) string {
	t.Helper()
	job := struct {
		Dir   string   `json:"dir"`
		Links []string `json:"links"`
	}{Dir: dir}
	for _, r := range refs {
		job.Links = append(job.Links, r.Name)
	}
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(l.in, "%s\n", text); err != nil {
		t.Fatal(err)
	}
	answer, err := l.out.ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(answer)
}
