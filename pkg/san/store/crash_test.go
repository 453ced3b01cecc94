package store_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// tiny has so few extents that they are used again at once, also those of files that a commit has just taken out.
var tiny = store.FormatOptions{ExtentSize: 4 << 10, AreaSize: 16 << 10}

const tinySize = 1<<20 + 32<<10 + 4096 + 26*4096

func seeds(t *testing.T, n int) []uint64 {
	if s, err := strconv.ParseUint(os.Getenv("SEED"), 10, 64); err == nil {
		return []uint64{s}
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = uint64(time.Now().UnixNano()) % 1e9
		out[i] += uint64(i)
	}
	t.Logf("SEED=%d and the %d after it", out[0], n-1)
	return out
}

func lunIn(fs *sim.FS) (fsx.File, error) { return fs.Root().Open("lun", fsx.ReadWrite) }

func openIn(fs *sim.FS) (*store.Store, error) {
	lun, err := lunIn(fs)
	if err != nil {
		return nil, err
	}
	return store.Open(lun, store.Options{})
}

// recorded walks a store with crashes in mind. A full store is part of it; drop is a sync to leave out.
func recorded(t *testing.T, seed uint64, steps int, drop string) (*sim.FS, *walk) {
	fs := sim.New(sim.Options{})
	s := formatted(t, fs.Root(), tinySize, tiny)
	w := newWalk(s, seed)
	must(t, w.open())
	fs.Record()
	if drop != "" {
		fs.DropSync(drop)
	}
	w.note = func(begun bool, m moment) {
		if begun {
			fs.Begin(m)
		} else {
			fs.Mark(m)
		}
	}
	for range steps {
		if err := w.one(); err != nil && !errors.Is(err, fault.NoSpace) {
			t.Fatalf("SEED=%d: step %d: %v", seed, w.step(), err)
		}
	}
	return fs, w
}

// survives judges one crash, and that work goes on after it.
func survives(c *sim.FS, data bool) error {
	s, err := openIn(c)
	if err != nil {
		return err
	}
	if e := c.Events(); len(e) > 0 && data {
		if err := e[len(e)-1].(moment).judge(s); err != nil {
			return err
		}
	}
	if err := growsByZeros(s); err != nil {
		return err
	}
	f, err := s.Root().Open("after", fsx.ReadWrite|fsx.Create)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := errors.Join(s.Root().Sync(), s.Close()); err != nil {
		return err
	}
	lun, err := lunIn(c)
	if err != nil {
		return err
	}
	report, err := store.Check(lun)
	if err == nil && len(report.Problems) > 0 {
		err = fmt.Errorf("check: %v", report.Problems)
	}
	return err
}

// growsByZeros makes every file larger: what a write that no commit followed left behind its end must not show.
func growsByZeros(s *store.Store) error {
	content, _, err := found(s)
	if err != nil {
		return err
	}
	for path, data := range content {
		dir, name, _ := strings.Cut(path, "/")
		d := s.Root()
		if dir != "" {
			if d, err = d.Sub(dir); err != nil {
				return err
			}
		}
		f, err := d.Open(name, fsx.ReadWrite)
		if err != nil {
			return err
		}
		defer f.Close()
		size := int64(len(data))
		if info, err := f.Stat(); err != nil || info.Size != size {
			continue // another name of it came first
		}
		if err := f.Truncate(size + 6000); err != nil {
			return err
		}
		p := make([]byte, 6000)
		if _, err := f.ReadAt(p, size); err != nil && err != io.EOF {
			return err
		}
		if i := slices.IndexFunc(p, func(b byte) bool { return b != 0 }); i >= 0 {
			return fmt.Errorf("%s grew from %d bytes and has %#x at %d", path, size, p[i], size+int64(i))
		}
	}
	return nil
}

func crashes(fs *sim.FS, limit int, seed uint64) (int, error) {
	count := 0
	for c := range fs.Crashes(limit, int64(seed)) {
		count++
		if err := survives(c, true); err != nil {
			return count, fmt.Errorf("%s: %w", c.Cut(), err)
		}
	}
	return count, nil
}

// TestCrashes cuts the power after every write to the LUN, with subsets of the unsynced ones, whole and torn.
func TestCrashes(t *testing.T) {
	walks, steps := 12, 60
	if testing.Short() {
		walks = 4
	}
	total := 0
	for _, seed := range seeds(t, walks) {
		fs, w := recorded(t, seed, steps, "")
		n, err := crashes(fs, 40, seed)
		if err != nil {
			t.Fatalf("SEED=%d, %d steps: %v", seed, w.step(), err)
		}
		total += n
	}
	if total < 1000 {
		t.Errorf("only %d crashes: the subject was not exercised", total)
	}
	t.Logf("%d crashes", total)
}

// TestEverySyncIsNeeded leaves out one sync at a time until a crash shows that it is missed.
func TestEverySyncIsNeeded(t *testing.T) {
	fs, _ := recorded(t, 1, 60, "")
	sites := slices.DeleteFunc(slices.Sorted(maps.Keys(fs.SyncSites())), func(s string) bool { return !strings.HasPrefix(s, "pkg/san/store/") })
	if len(sites) != 3 {
		t.Fatalf("syncs at %v only", sites)
	}
	for _, site := range sites {
		missed := false
		for seed := uint64(1); seed < 200 && !missed; seed++ {
			fs, _ := recorded(t, seed, 60, site)
			_, err := crashes(fs, 6, seed)
			if missed = err != nil; missed {
				t.Logf("without %s: %v", site, err)
			}
		}
		if !missed {
			t.Errorf("nothing goes wrong without the sync at %s", site)
		}
	}
}

// TestEveryOperationFails: an operation on the LUN fails, half done, or without an answer; the owner opens the store again
// and goes on, and then the power fails.
func TestEveryOperationFails(t *testing.T) {
	stride := 1
	if testing.Short() {
		stride = 3
	}
	full, _ := recorded(t, 3, 40, "")
	tried := 0
	for n := 0; n < full.Ops(); n += stride {
		for _, fail := range []func(fs *sim.FS){
			func(fs *sim.FS) { fs.FailAt(n, unix.EIO) }, func(fs *sim.FS) { fs.FailAfter(n, unix.EIO) },
		} {
			tried++
			if err := failing(t, fail); err != nil {
				t.Fatalf("operation %d of %d: %v", n, full.Ops(), err)
			}
		}
	}
	if tried < 20 {
		t.Errorf("%d failures: the subject was not exercised", tried)
	}
}

func failing(t *testing.T, fail func(fs *sim.FS)) error {
	fs := sim.New(sim.Options{})
	s := formatted(t, fs.Root(), tinySize, tiny)
	w := newWalk(s, 3)
	must(t, w.open())
	fs.Record()
	fail(fs)
	var failure error
	for range 40 {
		if failure = w.one(); failure != nil && !errors.Is(failure, fault.NoSpace) {
			break
		}
	}
	fs.Heal()
	must(t, closeLUN(s))
	s, err := openIn(fs) // a new process: what it finds is what the old one left
	if err != nil {
		return fmt.Errorf("reopen after %v: %w", failure, err)
	}
	if err := w.moment().judge(s); err != nil {
		return fmt.Errorf("reopened after %v: %w", failure, err)
	}
	at := fs.Position()
	for i := range 3 {
		write(t, s.Root(), fmt.Sprint("more", i), []byte("x"), 0)
		must(t, s.Root().Sync())
	}
	fs.Mark(w.moment())
	for c := range fs.CrashesFrom(at, 20, 1) {
		if err := survives(c, false); err != nil {
			return fmt.Errorf("after %v, reopened, then %s: %w", failure, c.Cut(), err)
		}
	}
	return nil
}

// closeLUN ends the owner as its death would: nothing is committed any more.
func closeLUN(s *store.Store) error { return s.Abandon() }

// TestFormatCrashes: over an old store, formatting leaves the old one, none, or the new one.
func TestFormatCrashes(t *testing.T) {
	run := func(drop string, files int) (*sim.FS, error) {
		fs := sim.New(sim.Options{})
		s := formatted(t, fs.Root(), tinySize, tiny)
		for i := range files {
			write(t, s.Root(), fmt.Sprint("old", i), []byte("old"), 0)
			must(t, s.Root().Sync())
		}
		must(t, s.Close())
		fs.Record()
		if drop != "" {
			fs.DropSync(drop)
		}
		lun, err := lunIn(fs)
		must(t, err)
		o := tiny
		o.Force = true
		_, err = store.Format(lun, o)
		must(t, err)
		fs.Mark("formatted")
		for c := range fs.Crashes(1024, 1) {
			s, err := openIn(c)
			switch {
			case errors.Is(err, fault.NotFound) && len(c.Events()) == 0:
			case err != nil:
				return fs, fmt.Errorf("%s: %w", c.Cut(), err)
			default:
				names, err := s.Root().List()
				must(t, err)
				if old := len(names) == files; len(names) != 0 && !old || old && len(c.Events()) > 0 {
					return fs, fmt.Errorf("%s: %v", c.Cut(), names)
				}
			}
		}
		return fs, nil
	}
	fs, err := run("", 20)
	must(t, err)
	for site := range fs.SyncSites() {
		_, even := run(site, 20)
		if _, odd := run(site, 21); even == nil && odd == nil { // the old catalogue is in one area or in the other
			t.Errorf("nothing goes wrong without the sync at %s", site)
		}
	}
}
