package vmdk

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
)

// TestCheckHealthy: no false alarm on what this package makes, of every type, with and without a parent, nor on a disk of mixed
// extents.
func TestCheckHealthy(t *testing.T) {
	ctx := context.Background()
	for _, typ := range Creatable() {
		for _, grain := range []int64{0, 16, 2048} {
			for _, parent := range []*Parent{nil, {Hint: "base.vmdk", CID: 0x1234}} {
				if !typ.Sparse() && (parent != nil || grain != 0) {
					continue
				}
				im := newImage(t, format{string(typ), CreateParams{Type: typ, Capacity: 40<<20 + 1536, GrainSectors: grain, Parent: parent}})
				if rep, err := Check(ctx, im.dir(), imageName); err != nil || len(rep.Problems) > 0 || rep.Allocated == 0 {
					t.Errorf("%s, grain %d, parent %v: %v %v, %d allocated", typ, grain, parent != nil, rep.Problems, err, rep.Allocated)
				}
			}
		}
	}
	for _, text := range []string{
		"RW 8 FLAT \"data\" 0\nRW 16 ZERO\nRDONLY 8 FLAT \"data\" 8\nNOACCESS 8 ZERO\nRW 81925 SPARSE \"disk-s001.vmdk\"",
		"RW 8 VMFS \"data\"\nNOACCESS 8 FLAT \"absent\" 0",
	} {
		im := newImage(t, format{"", CreateParams{Type: TwoGbMaxExtentSparse, Capacity: 40<<20 + 2560}})
		d := im.dir()
		head := "# Disk DescriptorFile\nversion=1\nCID=00000001\nparentCID=ffffffff\ncreateType=\"custom\"\n"
		if err := writeFile(d, imageName, []byte(head+text+"\n")); err != nil {
			t.Fatal(err)
		}
		if err := writeFile(d, "data", make([]byte, 16*SectorSize)); err != nil {
			t.Fatal(err)
		}
		if rep, err := Check(ctx, d, imageName); err != nil || len(rep.Problems) > 0 {
			t.Errorf("%q: %v %v", text, rep.Problems, err)
		}
	}
}

// TestCheckHealthyStreams: no false alarm on what the stream writer writes, into a file and into a pipe.
func TestCheckHealthyStreams(t *testing.T) {
	content := make([]byte, 9<<20+1536)
	for i := range content {
		if i>>16%3 == 0 {
			content[i] = byte(i * i >> 7)
		}
	}
	for _, pipe := range []bool{false, true} {
		for _, b := range [][]byte{content, make([]byte, 1<<20)} {
			d := sim.New(sim.Options{}).Root()
			writeStream(t, d, imageName, b, pipe, StreamParams{})
			if rep, err := Check(context.Background(), d, imageName); err != nil || len(rep.Problems) > 0 {
				t.Errorf("pipe %v, %d bytes: %v %v", pipe, len(b), rep.Problems, err)
			}
		}
	}
}

// TestCheckHealthyPeers: no false alarm on what qemu makes and writes.
func TestCheckHealthyPeers(t *testing.T) {
	path := t.TempDir()
	raw := make([]byte, 33<<20+512)
	copy(raw[5<<20:], bytes.Repeat([]byte("qemu"), 1<<18))
	raw[len(raw)-1] = 1
	if err := os.WriteFile(filepath.Join(path, "raw"), raw, 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := fsx.OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for name, args := range map[string][]string{
		"a.vmdk": {"subformat=monolithicSparse"}, "b.vmdk": {"subformat=monolithicFlat"}, "c.vmdk": {"subformat=twoGbMaxExtentSparse"},
		"d.vmdk": {"subformat=twoGbMaxExtentFlat"}, "e.vmdk": {"subformat=monolithicSparse,zeroed_grain=on"}, "f.vmdk": {"subformat=monolithicSparse,compat6=on"},
		"g.vmdk": {"subformat=streamOptimized"},
	} {
		cmd := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", args[0], "raw", name)
		cmd.Dir = path
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		rep, err := Check(context.Background(), d, name)
		if err != nil || worstOf(rep.Problems) > Note || rep.Allocated == 0 {
			t.Errorf("%s: %v %v", args[0], rep.Problems, err)
		}
		for _, p := range rep.Problems {
			t.Logf("%s: %v", args[0], p)
		}
	}
}
