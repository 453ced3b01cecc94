package vmdk

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares text with a file of testdata.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs:\n%s\nwant\n%s", name, got, want)
	}
}

func sample(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

var samples = []string{"esxi-delta.vmdk.txt", "workstation.vmdk.txt", "ctk.vmdk.txt", "crlf.vmdk.txt", "custom.vmdk.txt"}

func TestDescriptorKeepsEveryByte(t *testing.T) {
	for _, n := range samples {
		text := sample(t, n)
		d, err := ParseDescriptor(text)
		if err != nil {
			t.Fatalf("%s: %v", n, err)
		}
		if string(d.Text()) != string(text) {
			t.Errorf("%s is changed by reading and writing:\n%q\nwant\n%q", n, d.Text(), text)
		}
		padded, err := ParseDescriptor(append(text, "\x00\n\x00\x00"...))
		if err != nil || string(padded.Text()) != string(text) {
			t.Errorf("%s padded with NUL: %v", n, err)
		}
	}
}

func TestDescriptorValues(t *testing.T) {
	d, err := ParseDescriptor(sample(t, "workstation.vmdk.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if d.CID() != 0x0172e8a4 || d.ParentCID() != NoParent || d.IsChild() || d.Type() != TwoGbMaxExtentSparse || d.Capacity() != (8323072+4194304)*512 {
		t.Errorf("values: %v %v %v %v", d.CID(), d.ParentCID(), d.Type(), d.Capacity())
	}
	if u, ok := d.UUID(); !ok || u.String() != "60 00 C2 9a 1d 7b 49 44-dc 53 e6 d3 e5 89 7b 0d" || u.Hex() != "6000c29a1d7b4944dc53e6d3e5897b0d" {
		t.Errorf("uuid %v", u)
	}
	if x := d.Extents(); len(x) != 2 || x[1].Name != "a disk-s002.vmdk" || x[1].Sectors != 4194304 {
		t.Errorf("extents %+v", x)
	}
	if v, ok := d.Get("DDB.AdapterType"); !ok || v != "lsilogic" {
		t.Errorf("keys are compared without case: %q", v)
	}
	if _, ok := d.Get("ddb.comment"); ok {
		t.Error("an empty value counts as absent")
	}
	c, err := ParseDescriptor(sample(t, "custom.vmdk.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if x := c.Extents(); len(x) != 3 || x[0].Offset != 63 || x[1].Type != "ZERO" || x[2].Access != "RDONLY" || c.Capacity() != (63+100+200)*512 {
		t.Errorf("custom extents %+v", x)
	}
}

func TestDescriptorSet(t *testing.T) {
	d, err := ParseDescriptor(sample(t, "ctk.vmdk.txt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.setContent(0x12345678, strings.Repeat("ab", 12)+"12345678"); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{"ddb.new": "value", "headerKey": "x y"} {
		if err := d.Set(k, v); err != nil {
			t.Fatal(err)
		}
	}
	x := d.Extents()
	x[0].Sectors *= 2
	if err := d.SetExtents(append(x, ExtentLine{Access: "RW", Sectors: 7, Type: "FLAT", Name: "more-f002.vmdk"})); err != nil {
		t.Fatal(err)
	}
	if err := d.setGeometry(); err != nil {
		t.Fatal(err)
	}
	d.dropChangeTracking()
	golden(t, "ctk-changed.golden", d.Text())
	if _, err := ParseDescriptor(d.Text()); err != nil {
		t.Fatal(err)
	}
}

func TestDescriptorRefusesInjection(t *testing.T) {
	d, err := ParseDescriptor(sample(t, "ctk.vmdk.txt"))
	if err != nil {
		t.Fatal(err)
	}
	before := string(d.Text())
	for _, v := range []string{"a\"", "a\nRW 1 FLAT \"/etc/passwd\" 0", "a\rb", "a\x00b", strings.Repeat("x", 5000)} {
		if err := d.Set("ddb.comment", v); !errors.Is(err, fault.Invalid) {
			t.Errorf("Set %q: %v", clip(v), err)
		}
		if err := d.SetExtents([]ExtentLine{{Access: "RW", Sectors: 1, Type: "FLAT", Name: v}}); !errors.Is(err, fault.Invalid) {
			t.Errorf("SetExtents %q: %v", clip(v), err)
		}
	}
	if string(d.Text()) != before {
		t.Error("a refused value changed the text")
	}
}

func TestDescriptorRefusesDamage(t *testing.T) {
	good := "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"monolithicFlat\"\nRW 8 FLAT \"a\" 0\n"
	if _, err := ParseDescriptor([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty":          "",
		"no signature":   strings.TrimPrefix(good, "# Disk DescriptorFile\n"),
		"no version":     strings.Replace(good, "version=1\n", "", 1),
		"no CID":         strings.Replace(good, "CID=1\n", "", 1),
		"no type":        strings.Replace(good, "createType", "x", 1),
		"no extents":     strings.Replace(good, "RW 8 FLAT \"a\" 0\n", "", 1),
		"CID":            strings.Replace(good, "CID=1", "CID=xyz", 1),
		"long CID":       strings.Replace(good, "CID=1", "CID=123456789", 1),
		"two CIDs":       strings.Replace(good, "CID=1", "CID=1\nCID=2", 1),
		"garbage":        good + "what is this\n",
		"quote in value": good + "ddb.x = \"a\"b\"\n",
		"open quote":     good + "ddb.x = \"a\n",
		"open name":      good + "RW 8 FLAT \"a\n",
		"bare name":      good + "RW 8 FLAT a 0\n",
		"short extent":   good + "RW 8\n",
		"negative":       good + "RW -8 FLAT \"b\" 0\n",
		"overflow":       good + "RW 18446744073709551615 FLAT \"b\" 0\n",
		"sum overflow":   good + strings.Repeat("RW 70368744177664 FLAT \"b\" 0\n", 4),
		"offset":         good + "RW 8 FLAT \"b\" x\n",
		"NUL":            "# Disk DescriptorFile\nversion=1\nCID=1\n\x00" + good,
		"long":           good + strings.Repeat("#"+strings.Repeat("x", 1000)+"\n", 2000),
		"lines":          good + strings.Repeat("#\n", 9000),
		"extents":        good + strings.Repeat("RW 1 ZERO\n", 5000),
	} {
		if _, err := ParseDescriptor([]byte(text)); !errors.Is(err, fault.Damaged) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCanonicalText(t *testing.T) {
	u, err := ParseUUID("6000C29A1D7B4944DC53E6D3E5897B0D")
	if err != nil {
		t.Fatal(err)
	}
	blur := regexp.MustCompile(`ddb.longContentID = "[0-9a-f]{24}`)
	for name, p := range map[string]CreateParams{
		"flat.golden":  {Type: MonolithicFlat, Capacity: 40 << 30, UUID: u},
		"split.golden": {Type: TwoGbMaxExtentSparse, Capacity: 10 << 30, ExtentSize: 4064 << 20, UUID: u},
		"child.golden": {Type: TwoGbMaxExtentSparse, Capacity: 3 << 40, Parent: &Parent{Hint: "disk.vmdk", CID: 0x8f67ca74, LongContentID: "4b98b55ba6a6bc2e8fd6eb368f67ca74"}},
	} {
		if err := p.complete(); err != nil {
			t.Fatal(err)
		}
		stem := "disk"
		if p.Parent != nil {
			stem = "disk-000001"
		}
		d, err := newDescriptor(&p, extentLines(stem, stem+".vmdk", p.Type, 0, p.Capacity, p.ExtentSize))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasSuffix(d.LongContentID(), d.CID().String()) {
			t.Errorf("%s: longContentID %s does not end in the CID %s", name, d.LongContentID(), d.CID())
		}
		golden(t, name, blur.ReplaceAll(d.Text(), []byte(`ddb.longContentID = "000000000000000000000000`)))
	}
}

func TestIDs(t *testing.T) {
	for range 100 {
		if u := NewUUID(); !strings.HasPrefix(u.String(), "60 00 C2 9") {
			t.Fatalf("uuid %s", u)
		} else if v, err := ParseUUID(u.String()); err != nil || v != u {
			t.Fatalf("uuid %s is read as %s: %v", u, v, err)
		}
	}
	for _, s := range []string{"", "60 00", "zz", strings.Repeat("0", 34)} {
		if _, err := ParseUUID(s); !errors.Is(err, fault.Invalid) {
			t.Errorf("ParseUUID(%q): %v", s, err)
		}
	}
}

// Values of VMware's own disks.
func TestGeometry(t *testing.T) {
	for _, c := range []struct{ mib, cyl, heads, spt int64 }{{2, 2, 64, 32}, {30, 30, 64, 32}, {40 << 10, 5221, 255, 63}, {60 << 10, 7832, 255, 63}, {20 << 10, 2610, 255, 63}} {
		if cyl, h, s := geometry(c.mib<<11, "lsilogic"); cyl != c.cyl || h != c.heads || s != c.spt {
			t.Errorf("%d MiB: %d/%d/%d, want %d/%d/%d", c.mib, cyl, h, s, c.cyl, c.heads, c.spt)
		}
	}
	if cyl, h, s := geometry(1008*20, "ide"); cyl != 20 || h != 16 || s != 63 {
		t.Errorf("ide: %d/%d/%d", cyl, h, s)
	}
}

// Positions that VMware's and qemu's own images have.
func TestLayout(t *testing.T) {
	for _, c := range []struct{ capacity, desc, rgd, gd, overHead int64 }{
		{16384, 20, 21, 26, 128}, {20480, 0, 1, 6, 128}, {4194304, 20, 21, 278, 640}, {8323072, 0, 1, 510, 1024},
	} {
		h := layout(c.capacity, 128, c.desc)
		if int64(h.rgdOff) != c.rgd || int64(h.gdOff) != c.gd || int64(h.overHead) != c.overHead {
			t.Errorf("capacity %d: rgd %d gd %d overHead %d, want %+v", c.capacity, h.rgdOff, h.gdOff, h.overHead, c)
		}
		again, err := decodeHeader(h.encode())
		if err != nil {
			t.Fatal(err)
		}
		again.raw = h.raw
		if *again != *h {
			t.Errorf("header %v is read back as %v", h, again)
		}
	}
}
