package chain_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// mixed is an extent of a disk of mixed extents.
type mixed struct {
	start, n int64
	line     string
	writable bool
	grain    int64 // of a COWD extent
	shown    bool  // qemu knows such extents
}

// custom plays on a disk of mixed extents. libvmdk refuses such disks; qemu refuses createType custom, and drops the extents that are ZERO or must not be
// touched (block/vmdk.c, vmdk_parse_extents): it reads, and writes where all may be written, through a descriptor of another type
// that names the others.
func (p *peer) custom() {
	d := newDisk(p.t, p.r, vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 512})
	d.want = nil
	var xs []mixed
	writable := p.r.IntN(2) == 0
	count := 2 + p.r.IntN(4)
	for i := range count {
		xs = append(xs, p.extent(d, i, writable || i == 0, i == count-1))
	}
	all := true
	for _, x := range xs {
		all = all && x.writable
	}
	p.note = p.describe(d, "disk.vmdk", "custom", xs, true)
	d.o = chain.Options{Locks: true, Pending: &chain.MemoryPending{Max: 1 + p.r.IntN(200)}}
	for range 2 + p.r.IntN(2) {
		p.writeMixed(d, xs)
		if all && p.r.IntN(2) == 0 {
			p.qemuWritesMixed(d, xs)
		}
	}
	d.open()
	d.checkAll()
	d.close()
	p.sound(d)
	p.qemuReadsMixed(d, xs)
	d.addChild(p.child(childTypes[p.r.IntN(len(childTypes))]))
	p.write(d, 6)
	d.open()
	d.checkAll()
	d.close()
	p.sound(d)
	if all {
		p.retype(d, "custom", "twoGbMaxExtentSparse")
		d.qemuReads()
		p.qemu++
	}
}

// extent makes one extent, with content; its part of the disk is appended to want. A sparse one before others has whole grains: across
// its end qemu 7.2 would go on in the rest of its last grain (block/vmdk.c, vmdk_pwritev bounds a piece by the grain alone).
func (p *peer) extent(d *disk, i int, writable, last bool) mixed {
	p.t.Helper()
	const kinds = 8
	kind := p.r.IntN(kinds)
	if writable {
		kind = p.r.IntN(5)
	}
	n := p.r.Int64N(1500) + 1
	c := vmdk.CreateParams{}
	if kind == 3 || kind == 4 {
		c = p.params([]vmdk.Type{vmdk.TwoGbMaxExtentSparse, vmdk.VMFSSparse}[kind-3])
		if !last {
			n = (n + c.GrainSectors - 1) / c.GrainSectors * c.GrainSectors
		}
	}
	x := mixed{start: int64(len(d.want)), n: n * 512, grain: c.GrainSectors * 512, writable: kind < 5, shown: kind != 5 && kind != 7}
	file := fmt.Sprintf("x%d.raw", i)
	flat := func(access, typ string, skip int64, fill byte) {
		if err := os.WriteFile(filepath.Join(d.path, file), fillOf(int((n+skip)*512), fill), 0o600); err != nil {
			p.t.Fatal(err)
		}
		x.line = fmt.Sprintf("%s %d %s %q", access, n, typ, file)
		if typ == "FLAT" {
			x.line += fmt.Sprintf(" %d", skip)
		}
	}
	sparse := func(word, suffix string) {
		c.Capacity = n * 512
		stem := fmt.Sprintf("x%d", i)
		if _, err := vmdk.Create(context.Background(), d.dir, stem+".vmdk", c); err != nil {
			p.t.Fatal(err)
		}
		if err := d.dir.Remove(stem + ".vmdk"); err != nil {
			p.t.Fatal(err)
		}
		x.line = fmt.Sprintf("RW %d %s %q", n, word, stem+suffix)
	}
	fill := byte(0)
	if kind != 5 && kind != 3 && kind != 4 {
		fill = byte(i + 1)
	}
	switch kind {
	case 0:
		flat("RW", "FLAT", 0, fill)
	case 1:
		flat("RW", "FLAT", p.r.Int64N(100), fill)
	case 2:
		flat("RW", "VMFS", 0, fill)
	case 3:
		sparse("SPARSE", "-s001.vmdk")
	case 4:
		sparse("VMFSSPARSE", "-delta.vmdk")
	case 5:
		x.line = fmt.Sprintf("RW %d ZERO", n)
	case 6:
		flat("RDONLY", "FLAT", 0, fill)
	case 7:
		flat("NOACCESS", "FLAT", 0, fill)
		fill = 0
	}
	d.want = append(d.want, fillOf(int(x.n), fill)...)
	if n*512%max(x.grain, 4096) != 0 {
		p.odd++
	}
	return x
}

// describe writes a descriptor: of all extents, or of those that qemu knows, as if all could be written. After an empty line qemu
// would take an extent twice (block/vmdk.c, vmdk_parse_extents: sscanf skips the line's end).
func (p *peer) describe(d *disk, name, typ string, xs []mixed, all bool) string {
	p.t.Helper()
	text := "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\ncreateType=\"" + typ + "\"\n\n# Extent description\n"
	for _, x := range xs {
		switch {
		case all:
			text += x.line + "\n"
		case x.shown:
			text += strings.Replace(x.line, "RDONLY", "RW", 1) + "\n"
		}
	}
	text += "\n# The Disk Data Base \n#DDB\n\nddb.adapterType = \"lsilogic\"\n"
	if err := os.WriteFile(filepath.Join(d.path, name), []byte(text), 0o600); err != nil {
		p.t.Fatal(err)
	}
	return text
}

// writeMixed writes where that is allowed.
func (p *peer) writeMixed(d *disk, xs []mixed) {
	p.t.Helper()
	d.open()
	for range 6 {
		x := xs[p.r.IntN(len(xs))]
		if !x.writable {
			continue
		}
		off := x.start + p.r.Int64N(x.n)
		n := min(p.r.Int64N(100<<10)+1, x.start+x.n-off)
		b := fillOf(int(n), byte(p.r.IntN(255)+1))
		var err error
		switch p.r.IntN(6) {
		case 0:
			clear(b)
			err = d.c.Discard(off, n)
		case 1:
			clear(b)
			err = d.c.WriteZeroes(off, n)
		case 2:
			err = d.c.Flush()
			b = nil
		default:
			_, err = d.c.WriteAt(b, off)
		}
		if err != nil {
			p.t.Fatal(err)
		}
		copy(d.want[off:], b)
	}
	d.checkAll()
	d.close()
}

// qemuWritesMixed lets qemu write, when all tables of the COWD extents are there (see makeTables).
func (p *peer) qemuWritesMixed(d *disk, xs []mixed) {
	p.t.Helper()
	d.open()
	for _, x := range xs {
		if !strings.Contains(x.line, "VMFSSPARSE") {
			continue
		}
		for off := int64(0); off < x.n; off += 4096 * x.grain {
			if _, err := d.c.WriteAt([]byte{7}, x.start+off); err != nil {
				p.t.Fatal(err)
			}
			d.want[x.start+off] = 7
		}
	}
	d.close()
	p.describe(d, "qemu.vmdk", "twoGbMaxExtentSparse", xs, false)
	args := []string{"-f", "vmdk"}
	size := int64(len(d.want))
	for range 4 {
		off := p.r.Int64N(size/512) * 512
		n := min((p.r.Int64N(200)+1)*512, size-off)
		fill := byte(p.r.IntN(255) + 1)
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", fill, off, n))
		copy(d.want[off:], fillOf(int(n), fill))
	}
	tool(p.t, "qemu-io", append(args, filepath.Join(d.path, "qemu.vmdk"))...)
	p.written++
	p.touched = true
}

// qemuReadsMixed compares what qemu reads of the extents that it knows.
func (p *peer) qemuReadsMixed(d *disk, xs []mixed) {
	p.t.Helper()
	var want []byte
	for _, x := range xs {
		if x.shown {
			want = append(want, d.want[x.start:x.start+x.n]...)
		}
	}
	if len(want) == 0 {
		return
	}
	p.describe(d, "qemu.vmdk", "twoGbMaxExtentSparse", xs, false)
	raw := filepath.Join(d.path, "out.raw")
	tool(p.t, "qemu-img", "convert", "-f", "vmdk", "-O", "raw", filepath.Join(d.path, "qemu.vmdk"), raw)
	got, err := os.ReadFile(raw)
	if err != nil {
		p.t.Fatal(err)
	}
	same(p.t, "qemu-img convert", got, want, 0)
	p.qemu++
}

// retype changes the createType of the base.
func (p *peer) retype(d *disk, from, to string) {
	p.t.Helper()
	d.refs[0].Type = vmdk.Type(to)
	name := filepath.Join(d.path, "disk.vmdk")
	text, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, bytes.Replace(text, []byte(from), []byte(to), 1), 0o600)
	}
	if err != nil {
		p.t.Fatal(err)
	}
}

// stream writes random content as streamOptimized, into a file or a pipe, or has qemu write it, and puts a child on top.
func (p *peer) stream() {
	grain := int64(8) << p.r.IntN(6)
	p.small, p.packed = grain == 8, true
	c := vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: p.capacity(grain * 512)}
	d := newDisk(p.t, p.r, c)
	for range p.r.IntN(12) {
		off, n := d.span()
		b := d.want[off : off+n]
		for i, noise := 0, p.r.IntN(2) == 0; i < len(b); i++ {
			if b[i] = byte(i >> 9); noise {
				b[i] = byte(p.r.Uint32())
			}
		}
	}
	const name = "stream.vmdk"
	if p.r.IntN(4) == 0 {
		raw := filepath.Join(d.path, "in.raw")
		if err := os.WriteFile(raw, d.want, 0o600); err != nil {
			p.t.Fatal(err)
		}
		tool(p.t, "qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized", raw, filepath.Join(d.path, name))
		p.written++
	} else {
		p.writeStream(d, name, grain, p.r.IntN(2) == 0)
	}
	d.refs = []chain.Ref{{Name: name}}
	d.o = chain.Options{ReadOnly: true}
	p.agree(d)
	d.addChild(p.child(childTypes[p.r.IntN(len(childTypes))]))
	d.o = chain.Options{Pending: &chain.MemoryPending{Max: 1 + p.r.IntN(200)}}
	p.write(d, 6)
	p.qemuWrites(d, 3)
	p.write(d, 2)
	p.agree(d)
}

// writeStream writes the disk in pieces of whole grains, leaving out some that are zeros.
func (p *peer) writeStream(d *disk, name string, grain int64, pipe bool) {
	p.t.Helper()
	f, err := d.dir.Open(name, fsx.ReadWrite|fsx.Create)
	if err != nil {
		p.t.Fatal(err)
	}
	params := vmdk.StreamParams{Capacity: int64(len(d.want)), Name: name, GrainSectors: grain, Level: 1 + p.r.IntN(9), Workers: 1 + p.r.IntN(3)}
	var w *vmdk.StreamWriter
	if pipe {
		w, err = vmdk.NewStreamWriter(&fileWriter{f: f}, nil, params)
	} else {
		w, err = vmdk.NewStreamWriter(&fileWriter{f: f}, f, params)
	}
	if err != nil {
		p.t.Fatal(err)
	}
	for off := int64(0); off < int64(len(d.want)); {
		n := min((p.r.Int64N(8)+1)*grain*512, int64(len(d.want))-off)
		if b := d.want[off : off+n]; len(bytes.Trim(b, "\x00")) > 0 || p.r.IntN(2) == 0 {
			if err := w.WriteGrains(b, off); err != nil {
				p.t.Fatal(err)
			}
		}
		off += n
	}
	for _, err := range []error{w.Close(), f.Close()} {
		if err != nil {
			p.t.Fatal(err)
		}
	}
}
