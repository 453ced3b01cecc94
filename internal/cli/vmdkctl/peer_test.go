package vmdkctl

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// QemuDisks makes a disk of every type that qemu makes, a chain on each, and one with zeroed grains.
func (r *rig) qemuDisks() []string {
	rnd := seeded(r.t)
	var names []string
	for _, s := range qemuTypes {
		r.qemuDisk(rnd, s+".vmdk", s, 12)
		child, grandchild := s+"-child.vmdk", s+"-grandchild.vmdk"
		r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", s+".vmdk", "-F", "vmdk", child)
		r.scribble(rnd, child, diskSize, 6)
		r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", child, "-F", "vmdk", grandchild)
		r.scribble(rnd, grandchild, diskSize, 4)
		names = append(names, s+".vmdk", child, grandchild)
	}
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat=monolithicSparse,zeroed_grain=on", "zeroed.vmdk", fmt.Sprint(diskSize))
	r.scribble(rnd, "zeroed.vmdk", diskSize, 10)
	r.peer("qemu-io", "-f", "vmdk", "-c", "write -P 1 64k 256k", "-c", "write -z 128k 64k", "zeroed.vmdk")
	return append(names, "zeroed.vmdk")
}

func TestMapSaysWhatQemuSays(t *testing.T) {
	r := newRig(t)
	for _, name := range r.qemuDisks() {
		var theirs, ours []mapEntry
		if err := json.Unmarshal([]byte(r.peer("qemu-img", "map", "-f", "vmdk", "--output=json", name)), &theirs); err != nil {
			t.Fatal(err)
		}
		r.json(&ours, "map", name)
		if len(theirs) < 5 {
			t.Errorf("%s: qemu knows %d pieces only: nothing was compared", name, len(theirs))
		}
		if !reflect.DeepEqual(ours, theirs) {
			t.Errorf("%s: the map differs from qemu's\nours   %s\ntheirs %s", name, asJSON(t, ours), asJSON(t, theirs))
		}
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

type qemuInfo struct {
	Size     int64  `json:"virtual-size"`
	Backing  string `json:"backing-filename"`
	Specific struct {
		Data struct {
			CID       uint32 `json:"cid"`
			ParentCID uint32 `json:"parent-cid"`
			Type      string `json:"create-type"`
			Extents   []struct {
				Size int64 `json:"virtual-size"`
			} `json:"extents"`
		} `json:"data"`
	} `json:"format-specific"`
}

func (r *rig) qemuInfo(name string) qemuInfo {
	r.t.Helper()
	var q qemuInfo
	if err := json.Unmarshal([]byte(r.peer("qemu-img", "info", "-U", "-f", "vmdk", "--output=json", name)), &q); err != nil {
		r.t.Fatal(err)
	}
	return q
}

func TestInfoAndCheckOfQemusDisks(t *testing.T) {
	r := newRig(t)
	for _, name := range r.qemuDisks() {
		r.compareInfo(name)
		var c struct {
			Verdict   string
			Links     int
			Allocated int64
		}
		r.json(&c, "check", name) // exit code 0: clean
		if c.Verdict != verdictClean || c.Allocated == 0 {
			t.Errorf("%s: %+v", name, c)
		}
		var chain chainInfo
		r.json(&chain, "chain", name)
		if want := 1 + strings.Count(name, "child") + strings.Count(name, "grand"); len(chain.Links) != want || len(chain.Links) != c.Links {
			t.Errorf("%s: %d links, check says %d, want %d", name, len(chain.Links), c.Links, want)
		}
		for _, l := range chain.Links {
			if !l.ParentMatches {
				t.Errorf("%s: %s does not match its parent", name, l.File)
			}
		}
	}
}

func (r *rig) compareInfo(name string) {
	r.t.Helper()
	var ours linkInfo
	r.json(&ours, "info", name)
	theirs := r.qemuInfo(name)
	data := theirs.Specific.Data
	if ours.Capacity != theirs.Size || ours.Type != data.Type || ours.Parent != theirs.Backing ||
		ours.CID != fmt.Sprintf("%08x", data.CID) || ours.ParentCID != fmt.Sprintf("%08x", data.ParentCID) || len(ours.Extents) != len(data.Extents) {
		r.t.Errorf("%s: info %+v, qemu says %+v", name, ours, theirs)
	}
	for i, x := range data.Extents {
		if ours.Extents[i].Length != x.Size {
			r.t.Errorf("%s: extent %d has %d bytes, qemu says %d", name, i, ours.Extents[i].Length, x.Size)
		}
	}
}

func TestQemuReadsWhatCreateMakes(t *testing.T) {
	r := newRig(t)
	rnd := seeded(t)
	for _, s := range ourTypes {
		for _, f := range diskFormats {
			if f != "thin" && strings.Contains(s, "Sparse") {
				continue
			}
			name := s + "." + f + ".vmdk"
			r.ok("create", name, "--size", "40M", "--type", s, "--format", f)
			r.compareInfo(name)
			var info linkInfo
			r.json(&info, "info", name)
			if thick := info.Allocated >= 40<<20; thick != (f != "thin") {
				t.Errorf("%s: %d bytes are allocated", name, info.Allocated)
			}
			r.ok("check", name)
			// What qemu writes into our disk, we read. It makes no tables of COWD, and writes over the header where one is missing.
			if s != string(vmdk.VMFSSparse) {
				r.scribble(rnd, name, 40<<20, 20)
			}
			r.ok("check", name)
			r.ok("convert", name, name+".raw")
			r.same(name, name+".raw")
		}
	}
}

func TestConvertBothWays(t *testing.T) {
	r := newRig(t)
	rnd := seeded(t)
	r.qemuDisk(rnd, "base.vmdk", "monolithicFlat", 10)
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", "base.vmdk", "-F", "vmdk", "head.vmdk")
	r.scribble(rnd, "head.vmdk", diskSize, 10)
	r.ok("convert", "head.vmdk", "head.raw")
	r.same("head.vmdk", "head.raw")
	for _, s := range ourTypes {
		for _, source := range []string{"head.vmdk", "head.raw"} {
			name := s + "-of-" + strings.ReplaceAll(source, ".", "-") + ".vmdk"
			var c converted
			r.json(&c, "convert", source, name, "--type", s)
			r.same("head.raw", name)
			r.ok("check", name)
			// Holes stay holes: what is allocated is about what is not zeros.
			if c.Written == 0 || c.Allocated > c.Written+8<<20 || c.Data > 64<<20 {
				t.Errorf("%s: %+v", name, c)
			}
		}
	}
	r.ok("convert", "head.raw", "thick.vmdk", "--format", "zeroedthick")
	r.same("head.raw", "thick.vmdk")
	r.noPartials()
}

func (r *rig) noPartials() {
	r.t.Helper()
	for _, n := range r.files() {
		if strings.HasPrefix(n, ".") {
			r.t.Errorf("%s was left behind", n)
		}
	}
}

func TestConvertOddSizes(t *testing.T) {
	r := newRig(t)
	for _, size := range []int{1, 511, 512, 65536, 65537, 1<<20 + 1000} {
		raw := fmt.Sprintf("%d.raw", size)
		content := make([]byte, size)
		content[size-1], content[0] = 0xab, 0xcd
		if err := os.WriteFile(r.path(raw), content, 0o600); err != nil {
			t.Fatal(err)
		}
		name := fmt.Sprintf("disk%d.vmdk", size)
		r.ok("convert", raw, name, "--type", "monolithicSparse")
		var info linkInfo
		r.json(&info, "info", name)
		if want := int64(size+511) / 512 * 512; info.Capacity != want {
			t.Errorf("%d bytes became %d, want %d", size, info.Capacity, want)
		}
		r.ok("convert", name, name+".raw")
		back, err := os.ReadFile(filepath.Join(r.dir, name+".raw"))
		if err != nil {
			t.Fatal(err)
		}
		if string(back[:size]) != string(content) || strings.Trim(string(back[size:]), "\x00") != "" {
			t.Errorf("%d bytes did not come back", size)
		}
	}
	if err := os.WriteFile(r.path("empty.raw"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.fails(1, "it is empty", "convert", "empty.raw", "empty.vmdk")
	r.noPartials()
}
