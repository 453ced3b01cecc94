package vmdk

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// written is a disk with grains 0, 1, 5 and 600 stored, closed cleanly.
func written(t *testing.T, p CreateParams) fsx.Dir {
	t.Helper()
	d := sim.New(sim.Options{}).Root()
	if _, err := Create(context.Background(), d, "disk.vmdk", p); err != nil {
		t.Fatal(err)
	}
	l, err := Open(d, "disk.vmdk", Options{ReadWrite: true})
	if err != nil {
		t.Fatal(err)
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(l.Begin())
	e := l.Extents()[0]
	must(e.Begin())
	for _, g := range []int64{0, 1, 5, 600} {
		at, _, err := e.Alloc(1)
		must(err)
		must(e.WriteFile([]byte(strings.Repeat("g", int(e.GrainBytes()))), at*SectorSize))
		must(e.Prepare(g, 1))
		must(e.Set(g, 1, uint32(at)))
	}
	f := e.Freeze()
	must(e.SyncData())
	must(f.WriteTables())
	_, err = f.SyncTables()
	must(err)
	f.Thaw()
	must(l.CloseClean())
	return d
}

// patch changes bytes of a file.
func patch(t *testing.T, d fsx.Dir, name string, off int64, b ...byte) {
	t.Helper()
	f, err := d.Open(name, fsx.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

func u32(v uint32) []byte { return binary.LittleEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// The layout of a stand-alone 100 MiB extent: 4 tables; RGD 1, RGTs 2.., GD 18, GTs 19.., first grain 128.
const (
	rgt0 = 2 * 512
	gd   = 18 * 512
	gt0  = 19 * 512
)

func TestCheckFinds(t *testing.T) {
	p := CreateParams{Type: TwoGbMaxExtentSparse, Capacity: 100 << 20}
	const x = "disk-s001.vmdk"
	for _, c := range []struct {
		name  string
		code  Code
		sev   Severity
		off   int64
		bytes []byte
		guest int64 // expected Off, -1: none
		opens bool  // still readable
	}{
		{"copies differ", TableCopiesDiffer, Error, rgt0 + 4, u32(0), 65536, true},
		{"shared grain", GrainShared, Error, gt0 + 4, u32(128), 65536, true},
		{"overlap", GrainShared, Error, gt0 + 4, u32(129), 65536, true},
		{"in metadata", GrainInMetadata, Error, gt0 + 20, u32(26), 5 * 65536, true},
		{"unaligned", GrainUnaligned, Warning, gt0 + 2048 + 88*4, u32(513), 600 * 65536, true},
		{"cut off", GrainCutOff, Warning, gt0 + 2048 + 88*4, u32(513), 600 * 65536, true},
		{"beyond the end", GrainBeyondEnd, Error, gt0, u32(0x1000000), 0, true},
		{"zero without flag", ZeroEntryNoFlag, Error, gt0, u32(1), 0, true},
		{"beyond capacity", GrainBeyondCapacity, Error, gt0 + 3*2048 + 511*4, u32(256), -1, true},
		{"directory beyond the end", DirectoryBeyondEnd, Fatal, 56, u64(99999999), -1, false},
		{"copy of the directory beyond the end", DirectoryBeyondEnd, Fatal, 48, u64(99999999), -1, false},
		{"offset that wraps", DirectoryBeyondEnd, Fatal, 56, u64(1 << 55), -1, false},
		{"table beyond the end", TableBeyondEnd, Fatal, gd, u32(0xffffff), 0, false},
		{"table missing", TablesMissing, Warning, gd + 8, u32(0), -1, true},
		{"unclean", UncleanShutdown, Warning, 72, []byte{1}, -1, true},
		{"text transfer", TextTransfer, Fatal, 73, []byte{'\n', ' ', '\n', '\n'}, -1, false},
		{"unknown flag", UnknownFlags, Fatal, 10, []byte{0x10}, -1, false},
		{"compressed", Compressed, Fatal, 10, []byte{1}, -1, false},
		{"grain size", BadGrainSize, Fatal, 20, u64(100), -1, false},
		{"small grains", BadGrainSize, Fatal, 20, u64(4), -1, false},
		{"grain size 0", BadGrainSize, Fatal, 20, u64(0), -1, false},
		{"table size", BadTableSize, Fatal, 44, u32(100), -1, false},
		{"version 0", BadVersion, Fatal, 4, u32(0), -1, false},
		{"version 4", BadVersion, Fatal, 4, u32(4), -1, false},
		{"huge capacity", BadCapacity, Fatal, 12, u64(1 << 40), -1, false},
		{"small capacity", CapacityDiffers, Fatal, 12, u64(1000), -1, false},
		{"larger capacity", CapacityDiffers, Warning, 12, u64(100<<11 + 5), -1, true},
		{"overhead", BadOverhead, Fatal, 64, u64(1 << 40), -1, false},
		{"no header", ExtentDamaged, Fatal, 0, make([]byte, 512), -1, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := written(t, p)
			patch(t, d, x, c.off, c.bytes...)
			if c.sev == Warning && c.off > gt0 { // in both copies, or that is the worse defect
				patch(t, d, x, c.off-gt0+rgt0, c.bytes...)
			}
			rep, err := Check(context.Background(), d, "disk.vmdk")
			if err != nil {
				t.Fatal(err)
			}
			found := false
			for _, q := range rep.Problems {
				if q.Code == c.code && q.Severity == c.sev && q.File != "" && q.Message != "" && (c.guest < 0 || q.Off == c.guest && q.Len > 0) {
					found = true
				}
			}
			if !found {
				t.Errorf("not found: %v", rep.Problems)
			}
			if rep.Sound() != (c.sev < Error) {
				t.Errorf("sound %v", rep.Sound())
			}
			l, err := Open(d, "disk.vmdk", Options{})
			if (err == nil) != c.opens {
				t.Errorf("open: %v", err)
			}
			if err == nil {
				if err := l.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func TestCheckSoundDisks(t *testing.T) {
	for _, p := range []CreateParams{
		{Type: TwoGbMaxExtentSparse, Capacity: 100 << 20},
		{Type: MonolithicSparse, Capacity: 100 << 20},
	} {
		d := written(t, p)
		rep, err := Check(context.Background(), d, "disk.vmdk")
		if err != nil || len(rep.Problems) > 0 || rep.Allocated != 4*65536 {
			t.Errorf("%s: %+v %v", p.Type, rep, err)
		}
	}
}

func TestCheckFiles(t *testing.T) {
	check := func(d fsx.Dir, code Code) {
		t.Helper()
		rep, err := Check(context.Background(), d, "disk.vmdk")
		if err != nil || len(rep.Problems) != 1 || rep.Problems[0].Code != code {
			t.Errorf("%v %v, want %s", rep.Problems, err, code)
		}
	}
	flat := func() fsx.Dir {
		d := sim.New(sim.Options{}).Root()
		if _, err := Create(context.Background(), d, "disk.vmdk", CreateParams{Type: MonolithicFlat, Capacity: 1 << 20}); err != nil {
			t.Fatal(err)
		}
		return d
	}
	d := flat()
	if err := d.Remove("disk-flat.vmdk"); err != nil {
		t.Fatal(err)
	}
	check(d, ExtentMissing)
	if _, err := Open(d, "disk.vmdk", Options{}); !errors.Is(err, fault.Damaged) {
		t.Errorf("open without extent: %v", err)
	}
	d = flat()
	f, err := d.Open("disk-flat.vmdk", fsx.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Truncate(1000), f.Close()); err != nil {
		t.Fatal(err)
	}
	check(d, ExtentShort)
	d = flat()
	patch(t, d, "disk.vmdk", 30, '"')
	check(d, DescriptorDamaged)
	if _, err := Check(context.Background(), d, "absent.vmdk"); !errors.Is(err, fault.NotFound) {
		t.Errorf("absent: %v", err)
	}
}

// TestRecover: what a crash leaves is mended, what no crash leaves is refused.
func TestRecover(t *testing.T) {
	const x = "disk-s001.vmdk"
	p := CreateParams{Type: TwoGbMaxExtentSparse, Capacity: 100 << 20}
	for _, c := range []struct {
		name string
		at   int64
		v    uint32
		ok   bool
		want uint32 // of grain 1
	}{
		{"table behind its copy", gt0 + 4, 0, true, 256},
		{"copy behind its table", rgt0 + 4, 0, true, 256},
		{"two places", rgt0 + 4, 640, true, 256},
		{"shared", gt0 + 4, 128, false, 0},
		{"metadata", gt0 + 4, 20, false, 0},
		{"outside", gt0 + 4, 1 << 24, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := written(t, p)
			patch(t, d, x, c.at, u32(c.v)...)
			patch(t, d, x, 72, 1)
			l, err := Open(d, "disk.vmdk", Options{ReadWrite: true})
			if err != nil {
				t.Fatal(err)
			}
			err = l.Recover()
			if (err == nil) != c.ok || err != nil && !errors.Is(err, fault.Damaged) {
				t.Fatalf("recover: %v", err)
			}
			if !c.ok {
				if err := l.Close(); err != nil {
					t.Fatal(err)
				}
				return
			}
			if v, err := l.Extents()[0].Entry(1); err != nil || v != c.want {
				t.Errorf("grain 1 is at %d, want %d: %v", v, c.want, err)
			}
			if err := l.CloseClean(); err != nil {
				t.Fatal(err)
			}
			if rep, err := Check(context.Background(), d, "disk.vmdk"); err != nil || !rep.Sound() || len(rep.Problems) > 0 {
				t.Errorf("after recovery: %v %v", rep.Problems, err)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	head := "# Disk DescriptorFile\nversion=1\nCID=1\nparentCID=ffffffff\ncreateType=\"%s\"\n%s\n"
	text := func(createType, rest string) string { return fmt.Sprintf(head, createType, rest) }
	flat := `RW 8 FLAT "data" 0`
	for _, c := range []struct {
		what, text string
		kind       fault.Kind
		o          Options
	}{
		{"good", text("monolithicFlat", flat), "", Options{ReadWrite: true}},
		{"other directory", text("monolithicFlat", `RW 8 FLAT "../data" 0`), fault.Invalid, Options{}},
		{"absolute", text("monolithicFlat", `RW 8 FLAT "/etc/passwd" 0`), fault.Invalid, Options{}},
		{"windows", text("monolithicFlat", `RW 8 FLAT "\\.\PhysicalDrive0" 0`), fault.Invalid, Options{}},
		{"dots", text("monolithicFlat", `RW 8 FLAT ".." 0`), fault.Invalid, Options{}},
		{"no name", text("monolithicFlat", `RW 8 FLAT "" 0`), fault.Invalid, Options{}},
		{"itself", text("monolithicFlat", `RW 1 FLAT "disk.vmdk" 0`), fault.Damaged, Options{}},
		{"twice", text("twoGbMaxExtentFlat", flat+"\n"+flat), fault.Damaged, Options{}},
		{"missing", text("monolithicFlat", `RW 8 FLAT "absent" 0`), fault.Damaged, Options{}},
		{"short", text("monolithicFlat", `RW 9 FLAT "data" 0`), fault.Damaged, Options{}},
		{"short by offset", text("monolithicFlat", `RW 8 FLAT "data" 1`), fault.Damaged, Options{}},
		{"flat as sparse", text("twoGbMaxExtentSparse", `RW 8 SPARSE "data"`), fault.Damaged, Options{}},
		{"flat child", strings.Replace(text("monolithicFlat", flat), "ffffffff", "1", 1), fault.Damaged, Options{}},
		{"stream", text("streamOptimized", flat), fault.Damaged, Options{}},
		{"stream for writing", text("streamOptimized", flat), fault.Unsupported, Options{ReadWrite: true}},
		{"esx delta", text("vmfsSparse", `RW 8 VMFSSPARSE "data"`), fault.Damaged, Options{}},
		{"sesparse", text("seSparse", `RW 8 SESPARSE "data"`), fault.Damaged, Options{}},
		{"sesparse for writing", text("seSparse", `RW 8 SESPARSE "data"`), fault.Unsupported, Options{ReadWrite: true}},
		{"rdm without content", text("vmfsRawDeviceMap", `RW 9 VMFSRDM "data"`), fault.Unsupported, Options{}},
		{"rdm with its content", text("vmfsRawDeviceMap", `RW 8 VMFSRDM "data"`), "", Options{ReadWrite: true}},
		{"vsan", text("vsanSparse", `RW 8 VSANSPARSE "data"`), fault.Unsupported, Options{}},
		{"alias", text("2GbMaxExtentFlat", flat), "", Options{Type: TwoGbMaxExtentFlat, ReadWrite: true}},
		{"vmfs alias", text("vmfsEagerZeroedThick", `RW 8 VMFS "data"`), "", Options{Type: VMFS, ReadWrite: true}},
		{"two parts of a file", text("custom", "RW 4 FLAT \"data\" 0\nRW 4 FLAT \"data\" 4"), "", Options{ReadWrite: true, Lock: true}},
		{"overlapping parts of a file", text("custom", "RW 4 FLAT \"data\" 0\nRW 4 FLAT \"data\" 3"), fault.Damaged, Options{}},
		{"part of the disk for reading", text("custom", "RDONLY 4 FLAT \"data\" 0\nRW 4 ZERO\nRW 4 FLAT \"data\" 4"), "", Options{ReadWrite: true, Lock: true}},
		{"custom of unknown", text("custom", `RW 8 VSANSPARSE "data"`), fault.Unsupported, Options{}},
		{"encrypted", text("monolithicFlat", "encryptionKeys=\"x\"\n"+flat), fault.Unsupported, Options{}},
		{"encrypted by a filter", text("monolithicFlat", "ddb.iofilters = \"vmwarevmcrypt\"\n"+flat), fault.Unsupported, Options{}},
		{"two bytes of a character", text("monolithicFlat", "encoding=\"Shift_JIS\"\nRW 8 FLAT \"\x83\\\" 0"), fault.Damaged, Options{}}, // it is missing
		{"a separator behind one", text("monolithicFlat", "encoding=\"Shift_JIS\"\nRW 8 FLAT \"\x83\\\\a\" 0"), fault.Invalid, Options{}},
		{"a slash in one", text("monolithicFlat", "encoding=\"Shift_JIS\"\nRW 8 FLAT \"\x83/a\" 0"), fault.Invalid, Options{}},
		{"native snapshot", text("monolithicFlat", "isNativeSnapshot=\"yes\"\n"+flat), fault.Unsupported, Options{}},
		{"read-only extent", text("monolithicFlat", `RDONLY 8 FLAT "data" 0`), fault.ReadOnly, Options{ReadWrite: true}},
		{"digest", text("monolithicFlat", "digestFilename=\"x\"\n"+flat), fault.Unsupported, Options{ReadWrite: true}},
		{"empty", text("monolithicFlat", `RW 0 FLAT "data" 0`), fault.Damaged, Options{}},
		{"other type", text("monolithicFlat", flat), fault.Damaged, Options{Type: MonolithicSparse}},
		{"other names", text("monolithicFlat", flat), fault.Damaged, Options{ExtentNames: []string{"disk-flat.vmdk"}}},
		{"not text", strings.Repeat("\xff", 600), fault.Damaged, Options{}},
		{"long", strings.Repeat("#\n", 1<<20), fault.Damaged, Options{}},
		{"cowd", "COWD" + strings.Repeat("\x00", 600), fault.Invalid, Options{}},
		{"sesparse magic", "\xbe\xba\xfe\xca" + strings.Repeat("\x00", 600), fault.Unsupported, Options{}},
		{"cut header", "KDMV", fault.Damaged, Options{}},
	} {
		d := sim.New(sim.Options{}).Root()
		for name, b := range map[string][]byte{"disk.vmdk": []byte(c.text), "data": []byte(strings.Repeat("d", 4096))} {
			if err := writeFile(d, name, b); err != nil {
				t.Fatal(err)
			}
		}
		l, err := Open(d, "disk.vmdk", c.o)
		if fault.KindOf(err) != c.kind {
			t.Errorf("%s: %v, want %q", c.what, err, c.kind)
		}
		if err == nil {
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestReadOnlyWritesNothing: no operation reaches a directory that is only read.
func TestReadOnlyWritesNothing(t *testing.T) {
	fs := sim.New(sim.Options{})
	d := fs.Root()
	if _, err := Create(context.Background(), d, "disk.vmdk", CreateParams{Type: TwoGbMaxExtentSparse, Capacity: 1 << 20}); err != nil {
		t.Fatal(err)
	}
	patch(t, d, "disk-s001.vmdk", 72, 1)
	fs.Record()
	l, err := Open(d, "disk.vmdk", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.CloseClean()); err != nil {
		t.Fatal(err)
	}
	if _, err := Check(context.Background(), d, "disk.vmdk"); err != nil {
		t.Fatal(err)
	}
	if ops := fs.Log(); len(ops) > 0 {
		t.Fatalf("%v", ops)
	}
}
