package table

import (
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain/chaintest"
)

func TestMain(m *testing.M) {
	if os.Getenv("TABLE_TEST_APPENDER") != "" {
		appender()
	}
	os.Exit(m.Run())
}

func newFile(t *testing.T) *os.File {
	t.Helper()
	f, err := Create()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func mustOpen(t *testing.T, f *os.File) *Table {
	t.Helper()
	tab, err := Open(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tab.Close() })
	return tab
}

func TestConformance(t *testing.T) {
	var mu sync.Mutex
	files := map[chain.Pending]*os.File{}
	remember := func(p chain.Pending, f *os.File) chain.Pending {
		mu.Lock()
		defer mu.Unlock()
		files[p] = f
		return p
	}
	chaintest.RunPending(t, func(t *testing.T) chain.Pending {
		f := newFile(t)
		return remember(mustOpen(t, f), f)
	}, func(t *testing.T, p chain.Pending) chain.Pending {
		mu.Lock()
		f := files[p]
		mu.Unlock()
		return remember(mustOpen(t, f), f)
	})
}

func TestFullAndWrap(t *testing.T) {
	tab := mustOpen(t, newFile(t))
	var run [100]chain.PendingEntry
	appended := uint64(0)
	for round := range 3 {
		for {
			for i := range run {
				run[i] = chain.PendingEntry{Extent: 1, Link: 2, Sector: uint32(appended) + uint32(i), Grain: appended + uint64(i)}
			}
			err := tab.Append(run[:]...)
			if errors.Is(err, chain.ErrPendingFull) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			appended += uint64(len(run))
		}
		all := tab.Load()
		if len(all) > Slots || len(all) <= Slots-len(run) || len(all) != tab.Len() {
			t.Fatalf("round %d: full at %d of %d entries, Len %d", round, len(all), Slots, tab.Len())
		}
		first := appended - uint64(len(all))
		for i, e := range all {
			if want := first + uint64(i); e != (chain.PendingEntry{Extent: 1, Link: 2, Sector: uint32(want), Grain: want}) {
				t.Fatalf("round %d, entry %d: %+v, want grain %d", round, i, e, want)
			}
		}
		tab.Retire(tab.Mark() - uint64(round)*1000)
	}
}

func TestState(t *testing.T) {
	f := newFile(t)
	tab := mustOpen(t, f)
	if s := tab.State(); s != nil {
		t.Fatalf("a new table has the state %q", s)
	}
	if err := tab.SaveState(make([]byte, StateSize+1)); fault.KindOf(err) != fault.OutOfRange {
		t.Errorf("too long: %v", err)
	}
	for range 2 { // a worker that died before it answered INIT is followed by one that saves the same again
		if err := tab.SaveState([]byte("negotiated")); err != nil {
			t.Fatal(err)
		}
	}
	if err := tab.SaveState([]byte("otherwise!")); fault.KindOf(err) != fault.Precondition {
		t.Errorf("another outcome: %v", err)
	}
	next := mustOpen(t, f)
	if s := string(next.State()); s != "negotiated" {
		t.Errorf("a successor finds the state %q", s)
	}
	if next.Poisoned() || next.Served() {
		t.Error("poisoned or served from the start")
	}
	tab.Poison()
	tab.MarkServed()
	if !next.Poisoned() || !next.Served() {
		t.Error("a successor does not see poison or service")
	}
	if a, b := tab.Begin(), next.Begin(); a != 1 || b != 2 || tab.Generation() != 2 {
		t.Errorf("generations %d, %d, %d", a, b, tab.Generation())
	}
}

func TestRefused(t *testing.T) {
	tests := map[string]func(t *testing.T) *os.File{
		"not sealed": func(t *testing.T) *os.File {
			f, err := os.CreateTemp(t.TempDir(), "")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			if err := f.Truncate(Size); err != nil {
				t.Fatal(err)
			}
			return f
		},
		"no magic": func(t *testing.T) *os.File {
			f, err := sys.SealedMemfd("x", Size)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			return f
		},
		"version":        broken(offVersion, []byte{99}),
		"slots":          broken(offSlots, []byte{1, 0, 0, 0}),
		"tail past head": broken(offTail, []byte{1}),
		"too many":       broken(offHead, []byte{0, 0, 0, 1}),
		"state length":   broken(offStateLen, []byte{0, 0, 1}),
	}
	for name, file := range tests {
		t.Run(name, func(t *testing.T) {
			if tab, err := Open(file(t)); fault.KindOf(err) != fault.Damaged {
				t.Errorf("%v, %v", tab, err)
			}
		})
	}
}

func broken(off int64, with []byte) func(t *testing.T) *os.File {
	return func(t *testing.T) *os.File {
		f := newFile(t)
		if _, err := f.WriteAt(with, off); err != nil {
			t.Fatal(err)
		}
		return f
	}
}

func TestSizeIsSealed(t *testing.T) {
	f := newFile(t)
	for _, n := range []int64{0, Size + 1} {
		if err := f.Truncate(n); !errors.Is(err, unix.EPERM) {
			t.Errorf("truncate to %d: %v", n, err)
		}
	}
}

// appender is a worker that appends in runs of 3, retires now and then, and says after each run that it was kept. It is
// killed in the middle of that.
func appender() {
	tab, err := Open(os.NewFile(3, "table"))
	if err != nil {
		panic(err)
	}
	n := uint64(len(tab.Load()))
	for g := tab.Mark(); ; g += 3 {
		if n += 3; n > Slots-3 {
			tab.Retire(tab.Mark() - 10)
			n = 10
		}
		if err := tab.Append(entry(g), entry(g+1), entry(g+2)); err != nil {
			panic(err)
		}
		word64(tab.mem, ackOffset).Store(g + 3) // what the guest was told
	}
}

// ackOffset is a word of the header page that the table does not use.
const ackOffset = 4000

func entry(g uint64) chain.PendingEntry {
	return chain.PendingEntry{Extent: uint16(g * 7), Link: uint16(g * 5), Sector: uint32(g * 3), Grain: g}
}

// TestKilled: whenever an appender dies, the next one finds every acknowledged entry, in order and whole, and no half run.
func TestKilled(t *testing.T) {
	seed := rand.Uint64()
	if v := os.Getenv("SEED"); v != "" {
		seed, _ = strconv.ParseUint(v, 10, 64)
	}
	t.Logf("SEED=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, seed))
	f := newFile(t)
	tab := mustOpen(t, f)
	for round := range 40 {
		from := tab.Mark()
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "TABLE_TEST_APPENDER=1")
		cmd.ExtraFiles = []*os.File{f}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(10 * time.Second); tab.Mark() == from && time.Now().Before(deadline); {
			time.Sleep(50 * time.Microsecond)
		}
		time.Sleep(time.Duration(rnd.IntN(1000)) * time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		all, mark, acked := mustOpen(t, f).Load(), tab.Mark(), word64(tab.mem, ackOffset).Load()
		if mark == from {
			t.Fatalf("round %d: nothing was appended", round)
		}
		if mark%3 != 0 || mark < acked || mark > acked+3 {
			t.Fatalf("round %d: %d acknowledged, head is %d", round, acked, mark)
		}
		for i, e := range all {
			if want := entry(mark - uint64(len(all)-i)); e != want {
				t.Fatalf("round %d: entry %d is %+v, want %+v", round, i, e, want)
			}
		}
	}
}

// TestClaim: the claim is exclusive, waits, and ends with its holder whatever duplicates of the table are open.
func TestClaim(t *testing.T) {
	f := newFile(t)
	first, err := Claim(f)
	if err != nil {
		t.Fatal(err)
	}
	second := make(chan error, 1)
	go func() {
		c, err := Claim(f)
		if err == nil {
			err = c.Close()
		}
		second <- err
	}()
	select {
	case err := <-second:
		t.Fatalf("claimed twice: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-second:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the claim was not passed on")
	}
}
