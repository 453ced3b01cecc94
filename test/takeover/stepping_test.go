package takeover

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	hostdcli "github.com/vmdk-csi/vmdk-csi/internal/cli/hostd"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	hostlocal "github.com/vmdk-csi/vmdk-csi/pkg/host/local"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// stepsName is a file in the directory of the disk under test. While it is there, hostd and the disk's worker count the
// number in it down at every change they make on the datastore, and who reaches zero ends itself with SIGKILL, before the
// change: so every step of an operation, whoever makes it, is met by death.
const stepsName = "steps"

// step counts one change; at zero it does not return.
func step(open func() (fsx.File, error), remove func() error, op string) {
	f, err := open()
	if err != nil {
		return // not armed
	}
	defer f.Close()
	var b [16]byte
	n, _ := f.ReadAt(b[:], 0)
	left := 0
	if _, err := fmt.Sscan(string(b[:n]), &left); err != nil {
		return
	}
	if left--; left > 0 {
		_, _ = f.WriteAt([]byte(fmt.Sprintf("%-15d", left)), 0)
		return
	}
	_ = remove()
	fmt.Fprintln(os.Stderr, "killed before:", op)
	_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	select {}
}

// stepIn counts changes with the file in d, which must be the directory itself.
func stepIn(d fsx.Dir, name string) func(op string) {
	var mu sync.Mutex
	return func(op string) {
		mu.Lock()
		defer mu.Unlock()
		step(func() (fsx.File, error) { return d.Open(stepsName, fsx.ReadWrite) },
			func() error { return d.Remove(stepsName) }, name+" "+op)
	}
}

func openStepping(ctx context.Context, r worker.OpenRequest) (worker.Disk, error) {
	r.Dir = fsx.Watch(r.Dir, stepIn(r.Dir, "worker"))
	return worker.OpenChain(ctx, r)
}

// steppingHostd is hostd over the datastore in dir, of whose disks the first one that has a steps file counts.
func steppingHostd(dir string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var mu sync.Mutex
	before := func(op string) {
		mu.Lock()
		defer mu.Unlock()
		all, _ := filepath.Glob(filepath.Join(dir, "store", "volumes", "*", stepsName))
		if len(all) == 0 {
			return
		}
		d, err := fsx.OpenRoot(filepath.Dir(all[0]))
		if err != nil {
			return
		}
		defer func() { _ = d.Close() }()
		step(func() (fsx.File, error) { return d.Open(stepsName, fsx.ReadWrite) },
			func() error { return d.Remove(stepsName) }, "hostd "+op)
	}
	run := filepath.Join(dir, "run")
	return hostdcli.Run(ctx, hostdcli.Options{
		Node: "node-a", Socket: filepath.Join(run, "s"), RunDir: run,
		Datastores:    []hostlocal.DatastoreConfig{{Name: "a", Path: filepath.Join(dir, "store"), Scope: host.ScopeShared}},
		WorkerCommand: []string{"/proc/self/exe", "disk"},
		Log:           slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo})),
		OpenRoot: func(path string) (fsx.Dir, error) {
			d, err := fsx.OpenRoot(path)
			if err != nil {
				return nil, err
			}
			return fsx.Watch(d, before), nil
		},
	})
}

// stepper drives one operation to death at each of its steps.
type stepper struct {
	p     *product
	r     *rig
	dev   *os.File
	buf   []byte
	rnd   *rand.Rand
	model []byte // what the device must read as
}

const (
	steppingSize = 8 << 20
	stepTime     = 3 * time.Minute // for one operation to converge, on a machine with much else to do
)

func newStepper(t *testing.T) *stepper {
	t.Helper()
	need(t)
	t.Parallel() // most of the time is waiting for a process to follow another
	s := &stepper{rnd: seeded(t), buf: aligned(t), model: make([]byte, steppingSize)}
	s.p = &product{dir: t.TempDir(), node: "node-a", stepping: true}
	s.p.store = filepath.Join(s.p.dir, "store")
	if err := os.Mkdir(s.p.store, 0o755); err != nil {
		t.Fatal(err)
	}
	s.p.begin(t)
	s.r = s.p.attach(t, s.p.create(t, host.DiskSpec{Size: steppingSize}))
	var err error
	if s.dev, err = os.OpenFile(s.r.loop.Path(), os.O_RDWR|unix.O_DIRECT, 0); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stepper) end(t *testing.T) {
	t.Helper()
	if err := s.dev.Close(); err != nil {
		t.Error(err)
	}
	s.r.disk.links = refs(s.links(t))
	sum := s.r.sum(t)
	detachProduct(t, s.p, s.r)
	s.r.disk.verify(t, sum)
}

// write puts random content into [off, off+n), unsynced.
func (s *stepper) write(t *testing.T, off, n int64) {
	t.Helper()
	b := s.buf[:n]
	for i := range b {
		b[i] = byte(s.rnd.Uint32())
	}
	if _, err := s.dev.WriteAt(b, off); err != nil {
		t.Fatalf("%v\n%s", err, s.p.log())
	}
	copy(s.model[off:], b)
}

// check compares the device with the model.
func (s *stepper) check(t *testing.T, what string) {
	t.Helper()
	for off := int64(0); off < steppingSize; off += int64(len(s.buf)) {
		if _, err := s.dev.ReadAt(s.buf, off); err != nil {
			t.Fatalf("%s: %v\n%s", what, err, s.p.log())
		}
		if !bytes.Equal(s.buf, s.model[off:off+int64(len(s.buf))]) {
			t.Fatalf("%s: the device reads something else within 1 MiB of %d\n%s", what, off, s.p.log())
		}
	}
}

// checkLinks compares a chain on the datastore with the model.
func (s *stepper) checkLinks(t *testing.T, what, id string, links []host.Link) {
	t.Helper()
	dir, err := fsx.OpenRoot(filepath.Join(s.p.store, "volumes", id))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	c, err := chain.Open(dir, refs(links), chain.Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("%s: %v\n%s", what, err, s.p.log())
	}
	defer func() { _ = c.Close() }()
	got, err := io.ReadAll(io.NewSectionReader(c, 0, c.Size()))
	if err != nil || !bytes.Equal(got, s.model) {
		t.Fatalf("%s: other content (%v)\n%s", what, err, s.p.log())
	}
}

func (s *stepper) steps() string { return filepath.Join(s.r.disk.path, stepsName) }

// revive starts hostd again if it died, and waits until the disk is served.
func (s *stepper) revive(t *testing.T) {
	t.Helper()
	s.p.until(t, "the disk is served", func() bool {
		var ws unix.WaitStatus
		if pid, err := unix.Wait4(s.p.hostd.Process.Pid, &ws, unix.WNOHANG, nil); err == nil && pid > 0 {
			s.p.startHostd(t)
		}
		return s.p.worker(t) != 0
	})
}

// until repeats what the death of a process may have interrupted.
func (s *stepper) until(t *testing.T, what string, do func() error) {
	t.Helper()
	for deadline := time.Now().Add(stepTime); ; time.Sleep(2 * time.Millisecond) {
		err := do()
		switch fault.KindOf(err) {
		case "":
			return
		case fault.Unavailable, fault.Timeout, fault.InProgress:
		default:
			t.Fatalf("%s: %v\n%s", what, err, s.p.log())
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s, not within %v: %v\n%s", what, stepTime, err, s.p.log())
		}
		s.revive(t)
	}
}

func (s *stepper) links(t *testing.T) (links []host.Link) {
	t.Helper()
	s.until(t, "get", func() error {
		d, err := s.p.client.Get(t.Context(), s.p.id)
		links = d.Links
		return err
	})
	return links
}

// one waits until the disk has one link, and what made it one has ended.
func (s *stepper) one(t *testing.T) {
	t.Helper()
	s.until(t, "consolidation", func() error {
		d, err := s.p.client.Get(t.Context(), s.p.id)
		if err == nil && (len(d.Links) > 1 || d.Consolidation != nil) {
			err = fault.New(fault.InProgress, "", "%d links, %+v", len(d.Links), d.Consolidation)
		}
		return err
	})
}

// each runs an operation again and again, with death at its first step, its second, and so on, until it ends before its
// death. A run that is not full leaves steps out, others each time.
func (s *stepper) each(t *testing.T, what string, prepare, do func(n int)) {
	t.Helper()
	stride, n := 1, 1
	if !full() {
		stride = 5
		n += s.rnd.IntN(stride)
	}
	deaths := 0
	for ; ; n += stride {
		prepare(n)
		if err := os.WriteFile(s.steps(), []byte(fmt.Sprintf("%-15d", n)), 0o600); err != nil {
			t.Fatal(err)
		}
		do(n)
		s.revive(t)
		err := os.Remove(s.steps())
		s.check(t, fmt.Sprintf("%s, death at step %d", what, n))
		if err == nil {
			break
		}
		if !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		deaths++
	}
	t.Logf("%s: %d deaths, %d steps", what, deaths, n)
	if deaths < 4 {
		t.Errorf("%s: only %d deaths: its steps are not seen", what, deaths)
	}
	for _, who := range []string{"hostd ", "worker "} {
		if full() && what != "restore" && !strings.Contains(s.p.log(), "killed before: "+who) {
			t.Errorf("%s: no %sdied", what, who)
		}
	}
}

var other = map[chain.Direction]string{chain.Down: string(chain.Up), chain.Up: string(chain.Down)}

// TestDeathAtEveryStep: hostd or the worker dies before each change that a snapshot, a merge in either direction, a restore
// and a clone of an attached disk make on the datastore; the request, repeated, converges, and nothing is lost.
func TestDeathAtEveryStep(t *testing.T) {
	t.Run("snapshot", func(t *testing.T) {
		s := newStepper(t)
		var ids []string
		s.each(t, "snapshot", func(n int) {
			if len(ids) >= 8 {
				s.drop(t, ids)
				ids = nil
			}
			s.write(t, int64(s.rnd.IntN(64))*(64<<10), 64<<10)
		}, func(n int) {
			var snap host.Snapshot
			s.until(t, "snapshot", func() (err error) {
				snap, err = s.p.client.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: fmt.Sprint("s", n), Disk: s.p.id})
				return err
			})
			ids = append(ids, snap.ID)
			links := s.links(t)
			s.checkLinks(t, fmt.Sprintf("the snapshot, death at step %d", n), s.p.id, links[:len(links)-1])
		})
		s.drop(t, ids)
		s.end(t)
	})
	for _, dir := range []chain.Direction{chain.Down, chain.Up} {
		t.Run("merge "+string(dir), func(t *testing.T) {
			s := newStepper(t)
			var snap host.Snapshot
			if dir == chain.Down {
				for i := range int64(4) {
					s.write(t, i<<20, 1<<20)
				}
			}
			s.each(t, "merge", func(n int) {
				s.write(t, 5<<20, 64<<10) // what an upper link lacks
				s.until(t, "snapshot", func() (err error) {
					snap, err = s.p.client.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: fmt.Sprint("s", n), Disk: s.p.id})
					return err
				})
				if dir == chain.Up {
					s.write(t, 0, 1<<20)
				} else {
					s.write(t, 6<<20, 8<<10)
				}
				s.write(t, 64<<10, 4<<10)
			}, func(int) {
				s.until(t, "delete the snapshot", func() error { return s.p.client.DeleteSnapshot(t.Context(), snap.ID) })
				s.one(t)
			})
			if !strings.Contains(s.p.log(), "direction="+string(dir)) || strings.Contains(s.p.log(), "direction="+other[dir]) {
				t.Errorf("links were not merged %s", dir)
			}
			s.end(t)
		})
	}
	for _, what := range []string{"restore", "clone"} {
		t.Run(what, func(t *testing.T) {
			s := newStepper(t)
			var snap host.Snapshot
			var made string
			s.each(t, what, func(n int) {
				if made != "" {
					s.until(t, "delete", func() error { return s.p.client.Delete(t.Context(), made) })
				}
				s.until(t, "delete the snapshot", func() error { return s.p.client.DeleteSnapshot(t.Context(), snap.ID) })
				s.one(t)
				s.write(t, int64(s.rnd.IntN(64))*(64<<10), 64<<10)
				if what == "restore" {
					s.until(t, "snapshot", func() (err error) {
						snap, err = s.p.client.CreateSnapshot(t.Context(), host.SnapshotSpec{Name: fmt.Sprint("s", n), Disk: s.p.id})
						return err
					})
				}
			}, func(n int) {
				spec := host.DiskSpec{Name: prefix() + fmt.Sprint(what, n), Datastore: "a", Size: steppingSize, Source: &host.Source{Disk: s.p.id}}
				if what == "restore" {
					spec.Source = &host.Source{Snapshot: snap.ID}
				}
				s.until(t, what, func() error {
					d, err := s.p.client.Create(t.Context(), spec)
					if err == nil {
						made = d.ID
						s.checkLinks(t, fmt.Sprintf("the disk, death at step %d", n), d.ID, d.Links)
					}
					return err
				})
			})
			s.until(t, "delete", func() error { return s.p.client.Delete(t.Context(), made) })
			s.until(t, "delete the snapshot", func() error { return s.p.client.DeleteSnapshot(t.Context(), snap.ID) })
			s.one(t)
			s.end(t)
		})
	}
}

// drop deletes snapshots and waits until nothing of them is left.
func (s *stepper) drop(t *testing.T, ids []string) {
	t.Helper()
	for _, id := range ids {
		s.until(t, "delete the snapshot", func() error { return s.p.client.DeleteSnapshot(t.Context(), id) })
	}
	s.one(t)
}
