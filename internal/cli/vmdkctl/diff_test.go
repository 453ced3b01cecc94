package vmdkctl

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

// Span is a stretch of a disk.
type span struct{ start, end int64 }

// Join makes as few spans as possible of ordered ones.
func join(all []span) []span {
	var out []span
	for _, s := range all {
		if n := len(out); n > 0 && out[n-1].end >= s.start {
			out[n-1].end = max(out[n-1].end, s.end)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (r diffResult) spans() []span {
	var all []span
	for _, e := range r.Extents {
		all = append(all, span{e.Start, e.Start + e.Length})
	}
	return join(all)
}

func (r diffResult) sum() (changed int64) {
	for _, e := range r.Extents {
		changed += e.Length
	}
	return changed
}

// ChainOfThree has qemu make a chain with random content of the type.
func (r *rig) chainOfThree(subformat string) {
	rnd := seeded(r.t)
	r.qemuDisk(rnd, "disk.vmdk", subformat, 12)
	for i, name := range []string{"disk-000001.vmdk", "disk-000002.vmdk"} {
		below := []string{"disk.vmdk", "disk-000001.vmdk"}[i]
		r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", below, "-F", "vmdk", name)
		r.scribble(rnd, name, diskSize, 8)
	}
}

// What the upper links have is what qemu says about their depths.
func TestDiffSaysWhatQemuSays(t *testing.T) {
	for _, s := range qemuTypes {
		r := newRig(t)
		r.chainOfThree(s)
		var theirs []mapEntry
		if err := json.Unmarshal([]byte(r.peer("qemu-img", "map", "-f", "vmdk", "--output=json", "disk-000002.vmdk")), &theirs); err != nil {
			t.Fatal(err)
		}
		for below, name := range []string{"disk-000001.vmdk", "disk.vmdk"} {
			var want []span
			for _, x := range theirs {
				if x.Present && x.Depth <= below {
					want = append(want, span{x.Start, x.Start + x.Length})
				}
			}
			want = join(want)
			var d, back diffResult
			r.json(&d, "diff", name, "disk-000002.vmdk")
			if !slices.Equal(d.spans(), want) || len(want) < 3 || d.Changed != d.sum() || d.Common != 2-below {
				t.Errorf("%s: from %s: %+v, want %v", s, name, d, want)
			}
			r.json(&back, "diff", "disk-000002.vmdk", name)
			if !slices.Equal(back.spans(), want) {
				t.Errorf("%s: back to %s: %v, want %v", s, name, back.spans(), want)
			}
		}
		var same diffResult
		r.json(&same, "diff", "disk.vmdk", "disk.vmdk")
		if len(same.Extents) != 0 || same.Common != 1 {
			t.Errorf("%s: of itself: %+v", s, same)
		}
	}
}

func TestDiffByContent(t *testing.T) {
	r := newRig(t)
	r.chainOfThree("monolithicSparse")
	// The same content again is allocated, and no difference.
	r.peer("qemu-io", "-f", "vmdk", "-c", "write -P 5 40M 64k", "disk.vmdk")
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", "disk.vmdk", "-F", "vmdk", "equal.vmdk")
	r.peer("qemu-io", "-f", "vmdk", "-c", "write -P 5 40M 64k", "-c", "write -P 6 50M 512", "equal.vmdk")
	var d diffResult
	r.json(&d, "diff", "disk.vmdk", "equal.vmdk")
	if d.Changed != 128<<10 || !d.Grain {
		t.Errorf("by allocation: %+v", d)
	}
	r.json(&d, "diff", "disk.vmdk", "equal.vmdk", "--content")
	if want := []span{{50 << 20, 50<<20 + 512}}; !slices.Equal(d.spans(), want) || d.Changed != 512 || d.Grain {
		t.Errorf("by content: %+v, want %v", d, want)
	}
}

func TestDiffOfContentIsThatOfRawImages(t *testing.T) {
	const size = 64 << 20
	r := newRig(t)
	rnd := seeded(t)
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse", "disk.vmdk", fmt.Sprint(size))
	r.scribble(rnd, "disk.vmdk", size, 12)
	for _, x := range [][]string{{"disk.vmdk", "disk-000001.vmdk"}, {"disk-000001.vmdk", "disk-000002.vmdk"}} {
		r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", x[0], "-F", "vmdk", x[1])
		r.scribble(rnd, x[1], size, 8)
	}
	var d diffResult
	r.json(&d, "diff", "disk.vmdk", "disk-000002.vmdk", "--content")
	got := d.spans()
	if len(got) < 5 {
		t.Fatalf("only %v", got)
	}
	for _, name := range []string{"disk", "disk-000002"} {
		r.peer("qemu-img", "convert", "-f", "vmdk", "-O", "raw", name+".vmdk", name+".raw")
	}
	var files [2]*os.File
	for i, name := range []string{"disk.raw", "disk-000002.raw"} {
		f, err := os.Open(r.path(name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files[i] = f
	}
	var want []span
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for off := int64(0); off < size; off += int64(len(a)) {
		for i, p := range [][]byte{a, b} {
			if _, err := io.ReadFull(io.NewSectionReader(files[i], off, int64(len(p))), p); err != nil {
				t.Fatal(err)
			}
		}
		if bytes.Equal(a, b) {
			continue
		}
		for at := 0; at < len(a); at += 512 {
			if !bytes.Equal(a[at:at+512], b[at:at+512]) {
				want = append(want, span{off + int64(at), off + int64(at) + 512})
			}
		}
	}
	if want = join(want); !slices.Equal(got, want) {
		t.Errorf("differences %v, raw images have %v", got, want)
	}
}

func TestDiffRefuses(t *testing.T) {
	r := newRig(t)
	r.ok("create", "one.vmdk", "--size", "1M")
	r.ok("create", "two.vmdk", "--size", "1M")
	r.fails(cli.ExitFailed, "have no link in common", "diff", "one.vmdk", "two.vmdk")
	r.fails(cli.ExitFailed, "does not exist", "diff", "one.vmdk", "three.vmdk")
	r.fails(cli.ExitUsage, "accepts 2 arg(s)", "diff", "one.vmdk")
}

// A link that is larger than its parent has nothing there until it is written.
func TestDiffOfCapacities(t *testing.T) {
	r := newRig(t)
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "base.vmdk", "1M")
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "head.vmdk", fmt.Sprint(4<<20))
	r.peer("qemu-io", "-f", "vmdk", "-c", "write -P 1 3M 64k", "head.vmdk")
	for _, content := range []string{"", "--content"} {
		args := append([]string{"diff", "base.vmdk", "head.vmdk"}, slices.DeleteFunc([]string{content}, func(s string) bool { return s == "" })...)
		var d diffResult
		r.json(&d, args...)
		if want := []span{{3 << 20, 3<<20 + 64<<10}}; !slices.Equal(d.spans(), want) || d.OldSize != 1<<20 || d.NewSize != 4<<20 {
			t.Errorf("%v: %+v", args, d)
		}
	}
	var d diffResult
	r.json(&d, "diff", "head.vmdk", "base.vmdk")
	if want := []span{{3 << 20, 3<<20 + 64<<10}}; !slices.Equal(d.spans(), want) || d.Zeroed != 64<<10 {
		t.Errorf("back: %+v", d)
	}
}

func TestGoldenDiff(t *testing.T) {
	d := &diffResult{From: "monday", To: "pvc-4711", Common: 2, Grain: true, OldSize: 10 << 30, NewSize: 12 << 30}
	for _, e := range []diffExtent{
		{Start: 0, Length: 64 << 10, Link: "disk-000002.vmdk"},
		{Start: 64 << 10, Length: 64 << 10, Link: "disk-000002.vmdk"},
		{Start: 1 << 20, Length: 1 << 20, Zero: true, Link: "disk-000003.vmdk"},
		{Start: 11 << 30, Length: 128 << 10, Link: "disk-000003.vmdk"},
	} {
		if err := d.add(e); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, testdata("diff"), func(w io.Writer) error { return writeDiff(w, d) })
	golden(t, testdata("diff-live"), func(w io.Writer) error {
		return writeDiff(w, &diffResult{From: "monday", To: "tuesday", Live: true, OldSize: 1 << 30, NewSize: 1 << 30})
	})
}
