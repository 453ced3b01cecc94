//go:build !race

package chain_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

const raceDetector = false

// TestEverySyncMatters takes one sync after the other away; some crash must show it.
func TestEverySyncMatters(t *testing.T) {
	r := seeded(t)
	seed := r.Uint64()
	sites := map[string]bool{}
	for _, k := range crashCases {
		fs, refs := crashDisk(t, k)
		fs.Record()
		if err := crashRun(newRand(seed), fs.Root(), &journal{FS: fs}, refs, k); err != nil {
			t.Fatal(err)
		}
		for s := range fs.SyncSites() {
			sites[s] = true
		}
	}
	for site := range sites {
		if !syncMatters(t, site, seed) {
			t.Errorf("no crash shows that the sync at %s is missing", site)
		}
	}
}

func syncMatters(t *testing.T, site string, seed uint64) bool {
	for try := range uint64(4) {
		for _, k := range crashCases {
			fs, refs := crashDisk(t, k)
			fs.Record()
			fs.DropSync(site)
			k.ops *= 2
			if err := crashRun(newRand(seed+try), fs.Root(), &journal{FS: fs}, refs, k); err != nil {
				t.Fatal(err)
			}
			for cut := range fs.Crashes(12, int64(seed)) {
				if crashVerify(cut, cut.Events(), refs, k) != nil {
					return true
				}
			}
		}
	}
	return false
}

// TestEverySyncOfChangesMatters is TestEverySyncMatters for snapshots and merges.
func TestEverySyncOfChangesMatters(t *testing.T) {
	if !full() {
		t.Skip("VMDK_CSI_CHAIN=full runs it")
	}
	defer chain.SetPiece(64<<10, 192<<10)()
	seed := seeded(t).Uint64()
	sites := map[string]bool{}
	for _, k := range changeCases() {
		if k.p.Type.Embedded() { // the syncs of an embedded descriptor are proven above
			continue
		}
		h := newChanged(t, k, seed)
		h.inside = inStep
		if err := h.live(); err != nil {
			t.Fatal(err)
		}
		for site := range h.FS.SyncSites() {
			// Create's are proven in package crash; a child that is not durable yet is in no manifest.
			if !strings.HasPrefix(site, "pkg/vmdk/maker.go") {
				sites[site] = true
			}
		}
	}
	for site := range sites {
		if !changeSyncMatters(t, site, seed) {
			t.Errorf("no crash shows that the sync at %s is missing", site)
		}
	}
	t.Log(len(sites), "syncs")
}

func changeSyncMatters(t *testing.T, site string, seed uint64) bool {
	for try := range uint64(8) {
		for _, k := range changeCases() {
			h := newChanged(t, k, seed+try)
			h.inside = inStep
			h.FS.DropSync(site)
			if err := h.live(); err != nil {
				t.Fatal(err)
			}
			for cut := range h.FS.Crashes(8, int64(seed+try)) {
				if changeVerify(cut, slices.Concat(h.setup, cut.Events()), len(h.want)) != nil {
					return true
				}
			}
		}
	}
	return false
}

// TestSyncOfTakeOverMatters: what a dead process wrote in place into the link below the head is made durable by nobody but
// its successor.
func TestSyncOfTakeOverMatters(t *testing.T) {
	defer chain.SetPiece(64<<10, 192<<10)()
	seed := seeded(t).Uint64()
	for try := range uint64(6) {
		for _, k := range changeCases() {
			if k.name != "flat-base-down" {
				continue
			}
			for n := 10; ; n++ {
				h := newChanged(t, k, seed+try)
				for line := range 80 {
					h.FS.DropSync(fmt.Sprintf("pkg/vmdk/retire.go:%d", line))
				}
				died, err := deathThenLoss(h, n, seed)
				if err != nil {
					return
				}
				if !died {
					break
				}
			}
		}
	}
	t.Error("no crash shows that the sync of a take-over is missing")
}
