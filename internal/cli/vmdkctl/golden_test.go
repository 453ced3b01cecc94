package vmdkctl

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

var update = flag.Bool("update", false, "write golden files and docs/vmdkctl.md anew")

// Golden compares what write writes with a file.
func golden(t *testing.T, path string, write func(io.Writer) error) {
	t.Helper()
	var got bytes.Buffer
	if err := write(&got); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Errorf("%s is not current; look at the difference, then: go test ./internal/cli/vmdkctl -run %s -update\ngot\n%s", path, t.Name(), got.String())
	}
}

func testdata(name string) string { return filepath.Join("testdata", name+".golden") }

func someLinks() []linkInfo {
	base := linkInfo{
		File: "/srv/disks/disk.vmdk", Type: "monolithicFlat", Capacity: 10 << 30, Allocated: 3 << 30, CID: "4e929bb0", ParentCID: "ffffffff",
		UUID: "60 00 C2 9a 1d 7b 49 44-dc 53 e6 d3 e5 89 7b 0d", Adapter: "lsilogic", Geometry: "1305/255/63",
		Extents: []extentInfo{{File: "disk-flat.vmdk", Kind: "FLAT", Length: 10 << 30, Size: 10 << 30, Allocated: 3 << 30, Links: 2}},
	}
	child := linkInfo{
		File: "/srv/disks/disk-000001.vmdk", Type: "twoGbMaxExtentSparse", Capacity: 10 << 30, Allocated: 70 << 20, CID: "5b0b2f1c",
		ParentCID: "4e929bb0", Parent: "disk.vmdk", Unclean: true,
		Extents: []extentInfo{{File: "disk-000001-s001.vmdk", Kind: "SPARSE", Length: 10 << 30, Grain: 65536, Size: 80 << 20, Allocated: 70 << 20, Links: 1}},
	}
	head := linkInfo{
		File: "/srv/disks/disk-000002.vmdk", Type: "monolithicSparse", Embedded: true, Capacity: 12 << 30, Allocated: 1300 << 10, CID: "02c74d7e",
		ParentCID: "e1c1fb7d", Parent: "disk-000001.vmdk", Live: true,
		Extents: []extentInfo{{File: "disk-000002.vmdk", Kind: "SPARSE", Length: 12 << 30, Grain: 65536, Size: 2 << 20, Allocated: 1300 << 10, Links: 1}},
	}
	return []linkInfo{base, child, head}
}

func someVolume(released bool) *volumeInfo {
	return &volumeInfo{ID: "vd-u3q3s7zv6fphgw2of3iu77gskrmljrmc", Name: "pvc-4711", Format: "thin", Epoch: 7, Seq: 2, Owner: "worker-1", Released: released}
}

func TestGoldenInfo(t *testing.T) {
	links := someLinks()
	golden(t, testdata("info-base"), func(w io.Writer) error { return writeInfo(w, &links[0], 1) })
	golden(t, testdata("info-child"), func(w io.Writer) error { return writeInfo(w, &links[1], 2) })
	links[0].Volume = someVolume(false)
	links[0].Volume.Snapshots = []string{"monday", "tuesday"}
	golden(t, testdata("info-volume"), func(w io.Writer) error { return writeInfo(w, &links[0], 1) })
}

func TestGoldenChain(t *testing.T) {
	c := &chainInfo{Capacity: 12 << 30, Allocated: 3<<30 + 70<<20 + 1300<<10}
	for i, l := range someLinks() {
		c.Links = append(c.Links, chainLink{linkInfo: l, ParentMatches: i != 2})
	}
	golden(t, testdata("chain"), func(w io.Writer) error { return drawChain(w, c) })
	c.Links[0].Snapshots, c.Links[1].Unneeded, c.Volume = []string{"monday", "pvc-4711-tuesday"}, true, someVolume(false)
	golden(t, testdata("chain-snapshots"), func(w io.Writer) error { return drawChain(w, c) })
	c.Links[0].Snapshots = nil
	one := &chainInfo{Capacity: 10 << 30, Allocated: 3 << 30, Links: c.Links[:1], Volume: someVolume(true)}
	golden(t, testdata("chain-one"), func(w io.Writer) error { return drawChain(w, one) })
}

func TestGoldenMap(t *testing.T) {
	pieces := []chain.Extent{
		{Start: 0, Length: 1 << 20, Link: 0, Depth: 1, Present: true, Data: true, File: "disk-flat.vmdk"},
		{Start: 1 << 20, Length: 64 << 10, Link: 1, Present: true, Data: true, File: "disk-000001-s001.vmdk", Offset: 448 << 10},
		{Start: 1<<20 + 64<<10, Length: 1<<29 - 1<<20 - 64<<10, Link: 0, Depth: 1, Present: true, Zero: true, File: "disk-flat.vmdk", Offset: 1<<20 + 64<<10},
		{Start: 1 << 29, Length: 1 << 28, Link: 1, Present: true, Zero: true},
		{Start: 3 << 28, Length: 1 << 28, Link: 0, Depth: 1, Zero: true},
	}
	golden(t, testdata("map"), func(w io.Writer) error {
		return drawMap(w, []string{"disk.vmdk", "disk-000001.vmdk"}, 1<<30, pieces, 80)
	})
}

func TestGoldenCheck(t *testing.T) {
	bad := &checkResult{Disk: "disk.vmdk", Verdict: verdictDamaged, Links: 2, Allocated: 3 << 30, Leaked: 64 << 10, Omitted: 3, Problems: []vmdk.Problem{
		{Code: vmdk.GrainShared, Severity: vmdk.Error, File: "disk-s001.vmdk", Off: 1 << 20, Len: 65536, Message: "grains 16 and 17 are at the same place", Remedy: "restore the extent"},
		{Code: vmdk.UncleanShutdown, Severity: vmdk.Warning, File: "disk-s001.vmdk", Message: "the extent is open for writing, or was not closed"},
	}}
	golden(t, testdata("check-damaged"), func(w io.Writer) error { return writeCheck(w, bad) })
	golden(t, testdata("check-clean"), func(w io.Writer) error {
		return writeCheck(w, &checkResult{Disk: "disk.vmdk", Verdict: verdictClean, Links: 1, Allocated: 3 << 30})
	})
}

func TestGoldenList(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	all := []attachment{
		{Device: "/dev/loop0", Disk: "/srv/disks/disk.vmdk", Size: 10 << 30, Since: now.Add(-75 * time.Second), State: "Serving", WorkerPID: 4711, Restarts: 1},
		{Device: "/dev/loop12", Disk: "pvc-4711", Size: 1 << 30, ReadOnly: true, Since: now.Add(-26 * time.Hour), State: keeperDied},
	}
	golden(t, testdata("list"), func(w io.Writer) error { return writeList(w, all, now) })
	golden(t, testdata("list-none"), func(w io.Writer) error { return writeList(w, nil, now) })
}

func TestGoldenHelp(t *testing.T) {
	golden(t, testdata("help"), func(w io.Writer) error {
		root := (&app{out: w, err: w, format: "table"}).command()
		root.SetArgs([]string{"--help"})
		return root.Execute()
	})
}

// The manual is generated.
func TestManualIsCurrent(t *testing.T) {
	golden(t, "../../../docs/vmdkctl.md", func(w io.Writer) error {
		a := &app{out: w, err: w, format: "table"}
		root := a.command()
		root.SetArgs([]string{"docs"})
		return root.Execute()
	})
}
