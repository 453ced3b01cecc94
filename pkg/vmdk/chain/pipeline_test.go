package chain_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// TestPowerLossBetweenFlushes cuts the power while one flush follows the other so closely that they share a sync: the second
// one's grains are new, and its caller came while the first one wrote its tables.
func TestPowerLossBetweenFlushes(t *testing.T) {
	for _, k := range []crashCase{
		{"one extent", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 96 << 10, GrainSectors: 8}, true, 0},
		{"two extents", vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 1<<20 + 64<<10, ExtentSize: 1 << 20, GrainSectors: 8}, true, 0},
		{"COWD", vmdk.CreateParams{Type: vmdk.VMFSSparse, Capacity: 96 << 10, GrainSectors: 8}, true, 0},
	} {
		t.Run(k.name, func(t *testing.T) {
			fs, refs := crashDisk(t, k)
			fs.Record()
			limit := 256
			if k.p.Capacity > 1<<20 && (testing.Short() || raceDetector) {
				limit = 32 // the largest disk
			}
			syncs := twoFlushes(t, fs, refs)
			n := 0
			for cut := range fs.Crashes(limit, seeded(t).Int64()) {
				n++
				if err := verifyFlushes(cut, refs, k.p.Capacity); err != nil {
					t.Fatalf("%s, after %v: %v", cut.Cut(), cut.Events(), err)
				}
			}
			// Two commits of one extent share one sync: data, tables and data, tables.
			if k.name == "one extent" && syncs != 3 {
				t.Errorf("two flushes took %d syncs: they were not those that were to be tried", syncs)
			}
			if n < 60 {
				t.Errorf("only %d crashes were tried", n)
			}
			t.Logf("%d crashes, %d syncs", n, syncs)
		})
	}
}

// The writes leave the edges of their grains to the parent, whose content is not zeros there.
var firstWrites, secondWrites = []int64{512, 20<<10 + 512}, []int64{1024, 40<<10 + 512, 80<<10 + 1024, 1<<20 + 6<<10}

// TwoFlushes has the second caller come while the first one writes tables, and tells how many syncs both took.
func twoFlushes(t *testing.T, fs *sim.FS, refs []chain.Ref) (syncs int) {
	t.Helper()
	var c *chain.Chain
	second := make(chan error, 1)
	counting, came := false, false
	c, err := chain.Open(fsx.Watch(fs.Root(), func(op string) {
		switch {
		case !counting:
		case strings.HasPrefix(op, "sync "):
			syncs++
		case op[:6] == "write " && syncs > 0 && !came:
			came = true
			counting = false // what the other caller does first is its own business
			go func() { second <- writesFlushed(c, fs, secondWrites, 0x22, "second") }()
			for deadline := time.Now().Add(time.Minute); !c.FlushWaits() && time.Now().Before(deadline); {
				runtime.Gosched()
			}
			counting = true
		}
	}), refs, chain.Options{Pending: &chain.MemoryPending{Max: 64}})
	if err != nil {
		t.Fatal(err)
	}
	if err := writesFlushed(c, fs, []int64{0}, 0xee, "began"); err != nil { // what the first write of an open does
		t.Fatal(err)
	}
	counting = true
	if err := writesFlushed(c, fs, firstWrites, 0x11, "first"); err != nil {
		t.Fatal(err)
	}
	if !came {
		t.Fatal("the first flush wrote no tables")
	}
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	if err := c.Abandon(); err != nil {
		t.Fatal(err)
	}
	return syncs
}

func writesFlushed(c *chain.Chain, fs *sim.FS, at []int64, fill byte, name string) error {
	for _, off := range at {
		if off >= c.Size() {
			continue
		}
		if _, err := c.WriteAt(fillOf(512, fill), off); err != nil {
			return err
		}
	}
	if err := c.Flush(); err != nil {
		return err
	}
	fs.Mark(name)
	return nil
}

func verifyFlushes(cut *sim.FS, refs []chain.Ref, size int64) error {
	c, err := chain.Open(cut.Root(), refs, chain.Options{})
	if err != nil {
		return err
	}
	got := make([]byte, size)
	if _, err := c.ReadAt(got, 0); err != nil {
		return err
	}
	promised := map[string]bool{}
	for _, e := range cut.Events() {
		promised[e.(string)] = true
	}
	for off := int64(0); off < size; off += 512 {
		var was, is byte
		if off%(10<<10) < 4096 {
			was = 0xee
		}
		is = was
		must := false
		for name, w := range map[string][]int64{"first": firstWrites, "second": secondWrites} {
			for _, at := range w {
				if at == off {
					is, must = map[string]byte{"first": 0x11, "second": 0x22}[name], promised[name]
				}
			}
		}
		for i, b := range got[off : off+512] {
			if b != is && (must || b != was) {
				return fmt.Errorf("byte %d is %#x, want %#x (or %#x: %t)", off+int64(i), b, is, was, !must)
			}
		}
	}
	if err := c.Close(); err != nil {
		return err
	}
	rep, err := chain.Check(context.Background(), cut.Root(), refs)
	if err != nil {
		return err
	}
	if w, _ := rep.Worst(); w >= vmdk.Warning {
		return fmt.Errorf("check: %v", rep.Problems)
	}
	return nil
}
