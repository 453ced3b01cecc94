//go:build !race

package chain_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
)

// TestEverySyncOfSequencesMatters takes one sync after the other away, on every kind of disk; some sequence must show it. A plain run
// looks at two kinds.
func TestEverySyncOfSequencesMatters(t *testing.T) {
	var left atomic.Int64
	if left.Store(2); full() || long() {
		left.Store(1 << 30)
	}
	eachKind(t, func(t *testing.T, k sequenceKind, r *rand.Rand, _ uint64) {
		if left.Add(-1) < 0 {
			return
		}
		seed := r.Uint64()
		sites := map[string]string{} // and what shows that they are needed
		for try := range uint64(8) {
			start := newSequence(t, k, seed+try)
			for site, all := range start.reach(t, append(sequences(1), sequences(2)...), seed+try) {
				if try == 0 {
					sites[site] = ""
				}
				if how, ok := sites[site]; ok && how == "" {
					sites[site] = start.without(site, all, seed+try)
				}
			}
			if !slices.Contains(slices.Collect(maps.Values(sites)), "") {
				break
			}
		}
		if len(sites) < 6 {
			t.Errorf("only %d sync calls were reached", len(sites))
		}
		for site, how := range sites {
			if t.Logf("%s: %s", site, how); how == "" {
				t.Errorf("KIND=%q: no crash shows that the sync at %s is missing", k.name, site)
			}
		}
	})
}

// without says which sequence breaks without the syncs of a site, if any does.
func (h *sequence) without(site string, all [][]string, seed uint64) string {
	for _, s := range all[:min(len(all), 50)] {
		c := h.again(seed)
		c.FS.DropSync(site)
		if _, err := c.powerLoss(s, seed, 12, false); err != nil {
			return strings.Join(s, ",") + ": " + firstLine(err)
		}
	}
	return ""
}
