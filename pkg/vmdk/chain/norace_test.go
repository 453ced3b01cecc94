//go:build !race

package chain_test

import "testing"

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
