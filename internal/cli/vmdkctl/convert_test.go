package vmdkctl

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
)

// rawOf makes a raw image with data, zeros and holes; its size is no multiple of the grain.
func (r *rig) rawOf(name string, size int64) []byte {
	r.t.Helper()
	rnd := seeded(r.t)
	b := make([]byte, size)
	for off := int64(0); off < size; {
		n := min(size-off, 1+rnd.Int64N(300<<10))
		if k := rnd.IntN(3); k > 0 {
			for i := range n {
				b[off+i] = byte(rnd.Uint32()) >> (4 * (k - 1))
			}
		}
		off += n
	}
	if err := os.WriteFile(r.path(name), b, 0o600); err != nil {
		r.t.Fatal(err)
	}
	r.peer("fallocate", "--dig-holes", name)
	return b
}

// piped runs a command with input on its standard input.
func (r *rig) piped(input []byte, args ...string) result {
	r.t.Helper()
	cmd := r.command(args...)
	cmd.Stdin = bytes.NewReader(input)
	return r.finish(cmd)
}

// TestConvertTypes: a raw image becomes a disk of every type, which qemu finds equal, and becomes raw again.
func TestConvertTypes(t *testing.T) {
	r := newRig(t)
	want := r.rawOf("a.raw", 5<<20+3*512)
	for _, typ := range convertTypes {
		disk := typ + ".vmdk"
		r.ok("convert", "--to", typ, "a.raw", disk)
		r.same("a.raw", disk)
		if q := r.qemuInfo(disk); q.Specific.Data.Type != typ || q.Size != int64(len(want)) {
			t.Errorf("%s: qemu sees %+v", disk, q)
		}
		r.ok("convert", disk, typ+".raw")
		if got, err := os.ReadFile(r.path(typ + ".raw")); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: other content (%v)", typ, err)
		}
	}
}

// TestConvertPipe: disks and raw images through pipes, in both directions; what cannot go through one is told.
func TestConvertPipe(t *testing.T) {
	r := newRig(t)
	want := r.rawOf("a.raw", 40<<20+512)
	stream := r.ok("convert", "a.raw", "--to", "streamOptimized", "-")
	if err := os.WriteFile(r.path("stream.vmdk"), []byte(stream), 0o600); err != nil {
		t.Fatal(err)
	}
	r.same("a.raw", "stream.vmdk")
	if got := r.ok("convert", "stream.vmdk", "--to", "raw", "-"); got != string(want) {
		t.Error("raw through a pipe: other content")
	}
	for i, c := range []struct {
		in   string
		args []string
	}{
		{stream, nil},
		{stream, []string{"--to", "twoGbMaxExtentSparse"}},
		{stream, []string{"--to", "streamOptimized"}},
		{string(want), []string{"--from", "raw", "--size", fmt.Sprint(len(want))}},
	} {
		disk := fmt.Sprintf("from-pipe-%d.vmdk", i)
		if res := r.piped([]byte(c.in), append([]string{"convert", "-", disk}, c.args...)...); res.code != 0 {
			t.Fatalf("%v: %s", c.args, res.err)
		}
		r.same("a.raw", disk)
	}
	before := len(r.files())
	for _, c := range []struct {
		in   string
		code int
		say  string
		args []string
	}{
		{stream[:len(stream)/2], 3, "ends in", []string{"-", "x.vmdk"}},
		{stream[:100], 3, "ends in", []string{"-", "x.vmdk"}},
		{"no disk at all" + strings.Repeat(".", 600), 3, "not a sparse header", []string{"-", "x.vmdk"}},
		{string(want[:5000]), 3, "ends after 5000 bytes", []string{"--from", "raw", "--size", "1M", "-", "x.vmdk"}},
		{string(want[:5000]), 1, "longer than", []string{"--from", "raw", "--size", "4096", "-", "x.vmdk"}},
		{string(want), 2, "how long", []string{"--from", "raw", "-", "x.vmdk"}},
		{"", 2, "standard output", []string{"a.raw", "--to", "monolithicSparse", "-"}},
	} {
		res := r.piped([]byte(c.in), append([]string{"convert"}, c.args...)...)
		if res.code != c.code || !strings.Contains(res.err, c.say) {
			t.Errorf("%v: exit code %d, %q; want %d, %q", c.args, res.code, res.err, c.code, c.say)
		}
	}
	if now := len(r.files()); now != before {
		t.Errorf("%d files, %d before: something was left", now, before)
	}
}
