package sim_test

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx/sim"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func create(t *testing.T, d fsx.Dir, name string) fsx.File {
	t.Helper()
	f, err := d.Open(name, fsx.ReadWrite|fsx.Create)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t *testing.T, f fsx.File, s string, off int64) {
	t.Helper()
	_, err := f.WriteAt([]byte(s), off)
	must(t, err)
}

// content is a file as text, runs of one byte shortened; "-" if it is missing.
func content(d fsx.Dir, name string) string {
	f, err := d.Open(name, fsx.ReadOnly)
	if errors.Is(err, fault.NotFound) {
		return "-"
	}
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	info, _ := f.Stat()
	p := make([]byte, info.Size)
	if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
		return err.Error()
	}
	var out strings.Builder
	for i := 0; i < len(p); {
		j := i
		for ; j < len(p) && p[j] == p[i]; j++ {
		}
		if c := p[i]; c == 0 {
			fmt.Fprintf(&out, "0x%d", j-i)
		} else if j-i > 3 {
			fmt.Fprintf(&out, "%cx%d", c, j-i)
		} else {
			out.Write(p[i:j])
		}
		i = j
	}
	return out.String()
}

// outcomes is the set of what look sees over all crashes, sorted.
func outcomes(fs *sim.FS, limit int, look func(*sim.FS) string) []string {
	seen := map[string]bool{}
	for c := range fs.Crashes(limit, 1) {
		seen[look(c)] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

func files(names ...string) func(*sim.FS) string {
	return func(fs *sim.FS) string {
		var out []string
		for _, n := range names {
			out = append(out, content(fs.Root(), n))
		}
		return strings.Join(out, " ")
	}
}

func TestCrashOutcomes(t *testing.T) {
	long := func(c string) string { return strings.Repeat(c, 1536) }
	for _, c := range []struct {
		name  string
		setup func(t *testing.T, d fsx.Dir)
		run   func(t *testing.T, d fsx.Dir)
		look  []string
		want  string
	}{
		{"a write is there or not", func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "f"), "old", 0) },
			func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "f"), "new", 0) },
			[]string{"f"}, "new|old"},
		{"a sync is a border", func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "f"), "...", 0) },
			func(t *testing.T, d fsx.Dir) {
				f := create(t, d, "f")
				write(t, f, "a", 0)
				must(t, f.Datasync())
				write(t, f, "b", 1)
			},
			[]string{"f"}, "...|a..|ab."},
		{"without a sync order means nothing", func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "f"), "..", 0) },
			func(t *testing.T, d fsx.Dir) { f := create(t, d, "f"); write(t, f, "a", 0); write(t, f, "b", 1) },
			[]string{"f"}, "..|.b|a.|ab"},
		{"a write tears at sectors", func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "f"), long("o"), 0) },
			func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "f"), strings.Repeat("n", 1024), 512) },
			[]string{"f"}, "ox1024nx512|ox1536|ox512nx1024|ox512nx512ox512"},
		{"a datasync does not make the name durable", nil,
			func(t *testing.T, d fsx.Dir) { f := create(t, d, "f"); write(t, f, "data", 0); must(t, f.Datasync()) },
			[]string{"f"}, "|-|data"},
		{"a directory sync does not make the content durable", nil,
			func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "f"), "data", 0); must(t, d.Sync()) },
			[]string{"f"}, "|-|data"},
		{"atomic replace", func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "f"), "old", 0) },
			func(t *testing.T, d fsx.Dir) {
				f := create(t, d, "tmp")
				write(t, f, "new", 0)
				must(t, f.Datasync(), d.Rename("tmp", "f"), d.Sync())
			},
			[]string{"f"}, "new|old"},
		{"replace without sync can lose both", func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "f"), "old", 0) },
			func(t *testing.T, d fsx.Dir) {
				write(t, create(t, d, "tmp"), "new", 0)
				must(t, d.Rename("tmp", "f"), d.Sync())
			},
			[]string{"f"}, "|new|old"},
		{"link and unlink", func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "a"), "A", 0) },
			func(t *testing.T, d fsx.Dir) { must(t, d.LinkFrom(d, "a", "b"), d.Sync(), d.Remove("a")) },
			[]string{"a", "b"}, "- A|A -|A A"},
		{"unlink before the link is durable loses the file", func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "a"), "A", 0) },
			func(t *testing.T, d fsx.Dir) { must(t, d.LinkFrom(d, "a", "b"), d.Remove("a")) },
			[]string{"a", "b"}, "- -|- A|A -|A A"},
		{"size changes and holes", func(t *testing.T, d fsx.Dir) { write(t, create(t, d, "f"), "abcd", 0) },
			func(t *testing.T, d fsx.Dir) { f := create(t, d, "f"); must(t, f.Truncate(6), f.Punch(0, 2)) },
			[]string{"f"}, "0x2cd|0x2cd0x2|abcd|abcd0x2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := sim.New(sim.Options{})
			if c.setup != nil {
				c.setup(t, fs.Root())
			}
			fs.Record()
			c.run(t, fs.Root())
			if got := strings.Join(outcomes(fs, 1024, files(c.look...)), "|"); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestEvents: after a Mark the states that were possible before are enumerated again, under the stricter promise.
func TestEvents(t *testing.T) {
	fs := sim.New(sim.Options{})
	f := create(t, fs.Root(), "f")
	write(t, f, ".", 0)
	fs.Record()
	fs.Begin("writing a")
	write(t, f, "a", 0)
	fs.Mark("a is written")
	must(t, f.Datasync())
	fs.Mark("a is durable")
	got := outcomes(fs, 64, func(c *sim.FS) string { return fmt.Sprint(content(c.Root(), "f"), c.Events()) })
	want := "a[writing a a is written a is durable]|a[writing a a is written]|a[writing a]|.[writing a a is written]|.[]"
	wanted := strings.Split(want, "|")
	slices.Sort(wanted)
	if !slices.Equal(got, wanted) {
		t.Errorf("got  %q\nwant %q", got, wanted)
	}
}

func TestDropSync(t *testing.T) {
	run := func(drop string) (*sim.FS, []string) {
		fs := sim.New(sim.Options{})
		write(t, create(t, fs.Root(), "f"), ".", 0)
		fs.Record()
		if drop != "" {
			fs.DropSync(drop)
		}
		f := create(t, fs.Root(), "f")
		write(t, f, "a", 0)
		must(t, f.Datasync())
		fs.Mark("done")
		return fs, outcomes(fs, 64, func(c *sim.FS) string {
			if len(c.Events()) == 0 {
				return ""
			}
			return content(c.Root(), "f")
		})
	}
	fs, got := run("")
	if fmt.Sprint(got) != "[ a]" {
		t.Fatalf("with the sync: %q", got)
	}
	sites := slices.Sorted(maps.Keys(fs.SyncSites()))
	if len(sites) != 1 || !strings.HasPrefix(sites[0], "internal/fsx/sim/crash_test.go:") {
		t.Fatalf("sites: %q", sites)
	}
	if _, got := run(sites[0]); fmt.Sprint(got) != "[ . a]" {
		t.Fatalf("without the sync: %q", got)
	}
}

// TestFailedSync: after a failed fdatasync a later, successful one of another descriptor proves nothing.
func TestFailedSync(t *testing.T) {
	fs := sim.New(sim.Options{})
	f := create(t, fs.Root(), "f")
	write(t, f, ".", 0)
	fs.Record()
	write(t, f, "a", 0)
	fs.FailAt(fs.Ops(), unix.EIO)
	for range 2 {
		if err := f.Datasync(); !errors.Is(err, fault.Poisoned) || !errors.Is(err, unix.EIO) {
			t.Fatalf("failed sync: %v", err)
		}
	}
	must(t, create(t, fs.Root(), "f").Datasync())
	fs.Mark("synced again")
	last := map[string]bool{}
	for seed := range int64(20) {
		for c := range fs.Crashes(64, seed) {
			if len(c.Events()) > 0 {
				last[content(c.Root(), "f")] = true
			}
		}
	}
	if !last["a"] || !last["."] {
		t.Errorf("outcomes %v, want both", last)
	}
}

func TestFailures(t *testing.T) {
	for _, c := range []struct {
		name string
		arm  func(fs *sim.FS)
		want string // error of the write, content after it
		is   error
	}{
		{"enospc stores nothing", func(fs *sim.FS) { fs.FailAt(0, unix.ENOSPC) }, ".x2048", fault.NoSpace},
		{"eio stores a part", func(fs *sim.FS) { fs.FailAt(0, unix.EIO) }, "ax1024.x1024", unix.EIO},
		{"short write", func(fs *sim.FS) { fs.FailAt(0, io.ErrShortWrite) }, "ax1024.x1024", io.ErrShortWrite},
		{"lost answer", func(fs *sim.FS) { fs.FailAfter(0, unix.EIO) }, "ax2048", unix.EIO},
		{"not this one", func(fs *sim.FS) { fs.FailAt(1, unix.EIO) }, "ax2048", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs := sim.New(sim.Options{})
			f := create(t, fs.Root(), "f")
			write(t, f, strings.Repeat(".", 2048), 0)
			fs.Record()
			c.arm(fs)
			_, err := f.WriteAt([]byte(strings.Repeat("a", 2048)), 0)
			if (err == nil) != (c.is == nil) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error %v, want %v", err, c.is)
			}
			if got := content(fs.Root(), "f"); got != c.want {
				t.Errorf("content %s, want %s", got, c.want)
			}
		})
	}
	t.Run("dead from n on", func(t *testing.T) {
		fs := sim.New(sim.Options{})
		fs.FailFrom(1, unix.EIO)
		f := create(t, fs.Root(), "f")
		_, err := f.WriteAt([]byte("x"), 0)
		if err == nil || f.Datasync() == nil || fs.Root().Mkdir("d") == nil {
			t.Error("an operation succeeded")
		}
		fs.Heal()
		must(t, fs.Root().Mkdir("d"))
	})
	t.Run("exclusive create whose answer is lost", func(t *testing.T) {
		fs := sim.New(sim.Options{})
		fs.FailAfter(0, unix.EIO)
		if _, err := fs.Root().Open("f", fsx.ReadWrite|fsx.Create|fsx.Exclusive); !errors.Is(err, unix.EIO) {
			t.Fatal(err)
		}
		if content(fs.Root(), "f") != "" {
			t.Error("the file is not there")
		}
	})
}

func TestCapacity(t *testing.T) {
	fs := sim.New(sim.Options{Capacity: 64 << 10})
	d := fs.Root()
	f := create(t, d, "f")
	must(t, f.Truncate(1<<30), f.Allocate(0, 32<<10))
	if err := f.Allocate(0, 128<<10); !errors.Is(err, fault.NoSpace) {
		t.Errorf("Allocate beyond the capacity: %v", err)
	}
	p := make([]byte, 32<<10)
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Errorf("write into reserved space: %v", err)
	}
	if _, err := f.WriteAt(p, 1<<20); err != nil {
		t.Errorf("write into free space: %v", err)
	}
	if _, err := f.WriteAt(p[:1], 2<<20); !errors.Is(err, fault.NoSpace) {
		t.Errorf("write to a full file system: %v", err)
	}
	must(t, f.Punch(0, 4096))
	write(t, f, "x", 2<<20)
	must(t, f.Close(), d.Remove("f"))
	if _, free, _ := d.Space(); free != 64<<10 {
		t.Errorf("%d bytes free after removing all", free)
	}
}

// TestDeterministic: log and seed decide the states.
func TestDeterministic(t *testing.T) {
	fs := sim.New(sim.Options{})
	fs.Record()
	for i := range 14 {
		write(t, create(t, fs.Root(), fmt.Sprint("f", i%3)), strings.Repeat("x", 700*(i+1)), int64(i*100))
	}
	cuts := func(seed int64) (out []string) {
		for c := range fs.Crashes(40, seed) {
			out = append(out, c.Cut()+files("f0", "f1", "f2")(c))
		}
		return out
	}
	a := cuts(7)
	if len(a) < 200 || !slices.Equal(a, cuts(7)) || slices.Equal(a, cuts(8)) {
		t.Errorf("%d states; the same seed must give the same, another seed others", len(a))
	}
	for c := range fs.Crashes(40, 7) { // each state can be changed without harm to the next
		write(t, create(t, c.Root(), "f0"), "changed", 0)
	}
	if !slices.Equal(a, cuts(7)) {
		t.Error("a yielded file system shares what it writes")
	}
}

// TestCrashesFrom: the points before a position are left out, their effects are not.
func TestCrashesFrom(t *testing.T) {
	fs := sim.New(sim.Options{})
	write(t, create(t, fs.Root(), "f"), "...", 0)
	fs.Record()
	f := create(t, fs.Root(), "f")
	write(t, f, "a", 0)
	must(t, f.Datasync())
	from := fs.Position()
	write(t, f, "b", 1)
	var got []string
	for c := range fs.CrashesFrom(from, 64, 1) {
		got = append(got, content(c.Root(), "f"))
	}
	if fmt.Sprint(got) != "[ab.]" {
		t.Errorf("got %q", got)
	}
}

// TestSparseIsCheap: crash states of a large disk cost what was written, not its size.
func TestSparseIsCheap(t *testing.T) {
	fs := sim.New(sim.Options{})
	f := create(t, fs.Root(), "disk")
	must(t, f.Truncate(16<<20))
	fs.Record()
	for i := range 8 {
		write(t, f, strings.Repeat("x", 512), int64(i)*(2<<20))
	}
	n := 0
	allocs := testing.AllocsPerRun(1, func() {
		n = 0
		for range fs.Crashes(1024, 1) {
			n++
		}
	})
	if n < 255 || allocs/float64(n) > 150 {
		t.Errorf("%d states, %.0f allocations each", n, allocs/float64(n))
	}
}
