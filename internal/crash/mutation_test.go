package crash

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
)

// trial is one enumeration in which a sync call takes part.
type trial struct {
	s      sequence
	second bool // in the life after a crash
}

// trialsBySite runs every sequence and says which sync calls each one reaches.
func trialsBySite() (map[string][]trial, error) {
	var mu sync.Mutex
	found := map[string][]trial{}
	add := func(t trial, sites map[string]int) {
		mu.Lock()
		defer mu.Unlock()
		for site := range sites {
			found[site] = append(found[site], t)
		}
	}
	err := forEach(sequences(), func(s sequence) error {
		w, _, _, err := s.run(nil, false)
		if err != nil {
			return err
		}
		add(trial{s: s}, w.fs.SyncSites())
		w.die()
		if len(s.ops) > 1 {
			return nil
		}
		cuts, err := s.some(3)
		if err != nil {
			return err
		}
		for _, c := range cuts {
			_, sites, err := s.second(c, 1, nil)
			if err != nil {
				return err
			}
			add(trial{s: s, second: true}, sites)
		}
		return nil
	})
	// Short histories first: they are cheap, and most of what goes wrong goes wrong in them.
	for _, t := range found {
		slices.SortStableFunc(t, func(a, b trial) int { return len(a.s.ops) - len(b.s.ops) })
	}
	return found, err
}

// run judges the trial without the syncs of site.
func (t trial) run(site string, limit int) error {
	drop := func(fs *sim.FS) { fs.DropSync(site) }
	if !t.second {
		_, _, err := t.s.judge(limit, drop)
		return err
	}
	cuts, err := t.s.some(3)
	if err != nil {
		return err
	}
	for _, c := range cuts {
		if _, _, err := t.s.second(c, limit, drop); err != nil {
			return err
		}
	}
	return nil
}

// TestEverySyncIsNeeded: without any single sync call the enumeration finds a broken promise. A call that survives is
// useless and belongs removed, or guards something that the enumeration should look at.
func TestEverySyncIsNeeded(t *testing.T) {
	bySite, err := trialsBySite()
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("SEED=%d: %d sync calls", seed, len(bySite))
	if n := len(bySite); n < 2 || n < 8 && !testing.Short() {
		t.Fatal("too few: the code was not exercised")
	}
	broken, err := injections()
	if err != nil {
		t.Fatal(err)
	}
	sites := slices.Sorted(maps.Keys(bySite))
	if testing.Short() {
		sites = sites[:2]
	}
	if only := os.Getenv("CRASH_SITE"); only != "" { // e.g. "pkg/volume/engine.go"
		sites = slices.DeleteFunc(sites, func(s string) bool { return !strings.HasPrefix(s, only) })
		if len(sites) == 0 {
			t.Fatalf("no sync call is at CRASH_SITE=%s", only)
		}
	}
	err = forEach(sites, func(site string) error {
		if how := caught(site, bySite[site], broken); how != "" {
			t.Logf("%-34s %s", site, how)
		} else {
			t.Errorf("%s: nothing breaks without this sync, in %d histories: %s", site, len(bySite[site]), names(bySite[site]))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// caught says what finds that the syncs of site are gone. What is cheap and likely is tried first: short histories; then
// for calls that few histories reach the long ones, else the failures, because such calls guard what a process leaves
// that failed or died.
func caught(site string, trials []trial, broken []injected) string {
	brief := slices.IndexFunc(trials, func(t trial) bool { return len(t.s.ops) > 2 })
	if brief < 0 {
		brief = len(trials)
	}
	histories := func(from, to, limit int) string {
		for i, tr := range trials[from:to] {
			if tr.run(site, limit) != nil {
				return fmt.Sprintf("caught by history %d of %d: %s", from+i+1, len(trials), tr.s)
			}
		}
		return ""
	}
	failures := func() string {
		for i, in := range broken {
			in.without = site
			for _, in.then = range endings {
				if in.run() != nil {
					return fmt.Sprintf("caught by failure %d of %d: %s", i+1, len(broken), in)
				}
			}
		}
		return ""
	}
	if how := histories(0, brief, 6); how != "" {
		return how
	}
	if len(trials) < 200 {
		if how := histories(brief, len(trials), 16); how != "" {
			return how
		}
		return failures()
	}
	if how := failures(); how != "" {
		return how
	}
	return histories(brief, len(trials), 16)
}

func names(trials []trial) string {
	out := ""
	for _, t := range trials[:min(3, len(trials))] {
		out += fmt.Sprintf("[%s, second life: %v] ", t.s, t.second)
	}
	return out
}
