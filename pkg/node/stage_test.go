package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/stage"
)

var shapes = []struct {
	name      string
	mode      stage.Mode
	partition stage.Partition
}{
	{"mount", stage.Mount, stage.PartitionNone},
	{"gpt", stage.Mount, stage.PartitionGPT},
	{"block", stage.Block, stage.PartitionNone},
}

// life is what happens to a volume on a node, call by call; every call twice, since every call may be repeated.
func life(s *Service, v stage.Volume, p stage.Publication) []func() error {
	ctx := context.Background()
	var calls []func() error
	for _, c := range []func() error{
		func() error { return s.Stage(ctx, v) },
		func() error { return s.Publish(ctx, p) },
		func() error { _, err := s.Expand(ctx, v.ID, p.Target, gib); return err },
		func() error { return s.Unpublish(ctx, v.ID, p.Target) },
		func() error { return s.Unstage(ctx, v.ID, v.StagingPath) },
	} {
		calls = append(calls, c, c)
	}
	return calls
}

const lastUp = 4 // calls of a life that make something; the rest but Expand takes it away

func TestLife(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			m := newMachine(t)
			v := m.volume(shape.mode, shape.partition)
			s := m.service()
			for i, call := range life(s, v, m.publication(v)) {
				if i == 6 || i == 7 { // a repeated Expand needs the target; the repeated Unpublish does not
					if err := call(); err != nil {
						t.Fatalf("call %d: %v", i, err)
					}
					continue
				}
				if err := call(); err != nil {
					t.Fatalf("call %d: %v", i, err)
				}
				if i == lastUp-1 {
					link, err := os.Readlink(filepath.Join(m.dir, "by-id", "wwn-0x"+m.uuid()))
					if err != nil || len(link) == 0 {
						t.Errorf("link: %q, %v", link, err)
					}
				}
			}
			m.clean("after a life")
		})
	}
}

func (m *machine) uuid() string {
	d, err := m.hostd.Get(context.Background(), m.disk)
	if err != nil {
		m.t.Fatal(err)
	}
	return d.UUID
}

type killed struct{ step string }

// The process is killed between any two steps of a life. The next one either repeats the call that was killed and goes
// on, or takes everything away at once, as when the pod was deleted meanwhile.
func TestKilledBetweenSteps(t *testing.T) {
	for _, shape := range shapes {
		for _, goOn := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/goOn=%v", shape.name, goOn), func(t *testing.T) {
				kills := 0
				for n := 1; ; n++ {
					step, done := killAt(t, n, shape.mode, shape.partition, goOn)
					if done {
						break
					}
					kills++
					if t.Failed() {
						t.Fatalf("killed at step %d (%s)", n, step)
					}
				}
				if kills < 10 {
					t.Errorf("only %d steps were killed at: the life is not exercised", kills)
				}
			})
		}
	}
}

func killAt(t *testing.T, n int, mode stage.Mode, p stage.Partition, goOn bool) (step string, done bool) {
	m := newMachine(t)
	v := m.volume(mode, p)
	pub := m.publication(v)
	s := m.service()
	count := 0
	s.step = func(at string) {
		if count++; count == n {
			panic(killed{at})
		}
	}
	at := 0
	dead := func() (was *killed) {
		defer func() {
			if r := recover(); r != nil {
				k, ok := r.(killed)
				if !ok {
					panic(r)
				}
				was = &k
			}
		}()
		for i, call := range life(s, v, pub) {
			at = i
			if err := call(); err != nil {
				t.Fatalf("call %d: %v", i, err)
			}
		}
		return nil
	}()
	if dead == nil {
		m.clean("not killed")
		return "", true
	}
	m.k.die()
	s.Holder.Close()
	s = m.service()
	calls := life(s, v, pub)
	if !goOn {
		calls, at = calls[6:], 0
	}
	for i, call := range calls[at:] {
		if err := call(); err != nil {
			t.Fatalf("killed at %q (call %d): then call %d: %v", dead.step, at, at+i, err)
		}
	}
	m.clean(fmt.Sprintf("killed at %q (call %d)", dead.step, at))
	return dead.step, false
}

// Every call to the machine fails once, in each of the two ways. What Stage leaves after a final failure is nothing; after
// the other sort the repeated call continues.
func TestFailingCalls(t *testing.T) {
	for _, shape := range shapes {
		for _, kind := range []fault.Kind{fault.Internal, fault.Unavailable} {
			t.Run(fmt.Sprintf("%s/%s", shape.name, kind), func(t *testing.T) {
				failures := 0
				for n := 1; ; n++ {
					if !failAt(t, n, shape.mode, shape.partition, kind) {
						break
					}
					failures++
				}
				if failures < 10 {
					t.Errorf("only %d calls failed: the life is not exercised", failures)
				}
			})
		}
	}
}

func failAt(t *testing.T, n int, mode stage.Mode, p stage.Partition, kind fault.Kind) (failed bool) {
	m := newMachine(t)
	v := m.volume(mode, p)
	s := m.service()
	what := ""
	m.k.fail = func(i int, call string) error {
		if i == n {
			what = call
			return fault.New(kind, "", "%s fails", call)
		}
		return nil
	}
	for i, call := range life(s, v, m.publication(v)) {
		err := call()
		if err == nil {
			continue
		}
		if !errors.Is(err, kind) {
			t.Errorf("call %d: %v, want %s of %s", i, err, kind, what)
		}
		if i == 0 && kind == fault.Internal {
			m.clean("after the final failure of " + what)
		}
		if err := call(); err != nil {
			t.Errorf("call %d, repeated after %s failed: %v", i, what, err)
		}
	}
	m.clean("after " + what + " failed once")
	return what != ""
}

func TestStageRefusals(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	s := m.service()
	v := m.volume(stage.Mount, stage.PartitionNone)

	m.k.content[m.disk] = "xfs"
	if err := s.Stage(ctx, v); !errors.Is(err, fault.Precondition) {
		t.Errorf("another file system: %v", err)
	}
	m.clean("another file system")
	m.k.content[m.disk] = Unknown
	if err := s.Stage(ctx, v); !errors.Is(err, fault.Precondition) {
		t.Errorf("unknown content: %v", err)
	}
	if m.k.content[m.disk] != Unknown {
		t.Error("unknown content was formatted")
	}
	m.k.content[m.disk] = ""
	ro := v
	ro.ReadOnly = true
	if err := s.Stage(ctx, ro); !errors.Is(err, fault.Precondition) {
		t.Errorf("an empty disk read-only: %v", err)
	}
	m.clean("an empty disk read-only")
	if err := s.Stage(ctx, v); err != nil {
		t.Fatal(err)
	}
	other := v
	other.FSType = "xfs"
	if err := s.Stage(ctx, other); !errors.Is(err, fault.Exists) {
		t.Errorf("staged otherwise: %v", err)
	}
	if err := s.Stage(ctx, stage.Volume{ID: host.DiskID("nobody"), StagingPath: v.StagingPath + "2", Mode: stage.Block}); !errors.Is(err, fault.NotFound) {
		t.Errorf("no such disk: %v", err)
	}
	p := m.publication(v)
	if err := s.Publish(ctx, p); err != nil {
		t.Fatal(err)
	}
	if err := s.Unstage(ctx, v.ID, v.StagingPath); !errors.Is(err, fault.InUse) {
		t.Errorf("unstage while published: %v", err)
	}
	second := p
	second.Target, second.SinglePath = p.Target+"2", true
	if err := s.Publish(ctx, second); !errors.Is(err, fault.Precondition) {
		t.Errorf("a single path beside another: %v", err)
	}
	second.SinglePath, second.ReadOnly = false, true
	if err := s.Publish(ctx, second); err != nil {
		t.Errorf("two pods on one node: %v", err)
	}
	second.ReadOnly = false
	if err := s.Publish(ctx, second); !errors.Is(err, fault.Exists) {
		t.Errorf("published otherwise: %v", err)
	}
	if u, err := s.Usage(ctx, v.ID, "/nowhere"); !errors.Is(err, fault.NotFound) {
		t.Errorf("usage elsewhere: %v, %v", u, err)
	}
	if _, err := s.Expand(ctx, v.ID, p.Target, 2*gib); !errors.Is(err, fault.OutOfRange) {
		t.Errorf("expand beyond the disk: %v", err)
	}
	for _, target := range []string{p.Target, second.Target} {
		if err := s.Unpublish(ctx, v.ID, target); err != nil {
			t.Error(err)
		}
	}
	if err := s.Unstage(ctx, v.ID, v.StagingPath); err != nil {
		t.Error(err)
	}
	m.clean("at the end")
}

// One pod of a node writes a device, another gets it read-only.
func TestDeviceIsPublishedReadOnlyBesideAWriter(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	v := m.volume(stage.Block, stage.PartitionNone)
	s := m.service()
	writer := m.publication(v)
	reader := writer
	reader.Target, reader.ReadOnly = writer.Target+"2", true
	for i, call := range []func() error{
		func() error { return s.Stage(ctx, v) },
		func() error { return s.Publish(ctx, writer) },
		func() error { return s.Publish(ctx, reader) },
		func() error { return s.Unpublish(ctx, v.ID, writer.Target) },
		func() error { return s.Unpublish(ctx, v.ID, reader.Target) },
		func() error { return s.Unstage(ctx, v.ID, v.StagingPath) },
	} {
		if err := call(); err != nil {
			t.Fatalf("call %d: %v", i, err)
		}
	}
	m.clean("after both")
}

// The machine restarted: mounts, devices and attachments are gone, the journal is not.
func TestAfterReboot(t *testing.T) {
	for _, shape := range shapes {
		t.Run(shape.name, func(t *testing.T) {
			ctx := context.Background()
			m := newMachine(t)
			v := m.volume(shape.mode, shape.partition)
			p := m.publication(v)
			p.SinglePath = true
			for range 2 {
				s := m.service()
				if err := errors.Join(s.Stage(ctx, v), s.Publish(ctx, p)); err != nil {
					t.Fatal(err)
				}
				s.Holder.Close()
				m.k.devices, m.k.mounts = map[string]*fakeDevice{}, map[string][]Mount{}
				if err := m.hostd.Detach(ctx, v.ID); err != nil {
					t.Fatal(err)
				}
				p.Target += "-other" // another pod
			}
			s := m.service()
			if err := errors.Join(s.Unpublish(ctx, v.ID, p.Target), s.Unstage(ctx, v.ID, v.StagingPath)); err != nil {
				t.Fatal(err)
			}
			os.Remove(filepath.Join(m.dir, "pod", "target"))
			m.clean("after reboots")
		})
	}
}

// Both holders of a disk's descriptors died: the device answers nobody. A staged volume that no pod uses is attached anew.
func TestLostServer(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	s := m.service()
	v := m.volume(stage.Mount, stage.PartitionNone)
	if err := s.Stage(ctx, v); err != nil {
		t.Fatal(err)
	}
	if err := m.hostd.Memory.Detach(ctx, v.ID); err != nil { // as after a restart of hostd that nobody gave the disk
		t.Fatal(err)
	}
	if err := s.Stage(ctx, v); err != nil {
		t.Fatal(err)
	}
	if all, _ := m.hostd.Attachments(ctx); len(all) != 1 {
		t.Errorf("attachments: %v", all)
	}
	if err := s.Unstage(ctx, v.ID, v.StagingPath); err != nil {
		t.Fatal(err)
	}
	m.clean("at the end")
}

func TestUnstageWithoutStage(t *testing.T) {
	m := newMachine(t)
	s := m.service()
	if err := s.Unstage(context.Background(), m.disk, filepath.Join(m.dir, "staging")); err != nil {
		t.Error(err)
	}
	if err := s.Unpublish(context.Background(), m.disk, filepath.Join(m.dir, "pod", "target")); err != nil {
		t.Error(err)
	}
	m.clean("never staged")
}

// The journal's directory is lost: the kernel still shows what is to be undone.
func TestLostJournal(t *testing.T) {
	ctx := context.Background()
	m := newMachine(t)
	s := m.service()
	v := m.volume(stage.Mount, stage.PartitionNone)
	if err := s.Stage(ctx, v); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(s.journal.path(v.ID)); err != nil {
		t.Fatal(err)
	}
	if err := s.Unstage(ctx, v.ID, v.StagingPath); err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(filepath.Join(m.dir, "by-id")) // the link's name is what was lost
	m.clean("lost journal")
}

// The half-made file system of a first Stage cannot be taken away: that holds Unstage up while it can pass, and is told
// when it cannot.
func TestUnstageOfAHalfFormattedDisk(t *testing.T) {
	for _, tc := range []struct {
		kind fault.Kind // of the attach for emptying it
		held bool
	}{
		{fault.NoSpace, true}, {fault.Unavailable, true}, {fault.Damaged, false}, {fault.InUse, false}, {fault.ReadOnly, false},
	} {
		t.Run(string(tc.kind), func(t *testing.T) {
			ctx := context.Background()
			m := newMachine(t)
			s := m.service()
			told := &noted{}
			s.Recorder = told
			v := m.volume(stage.Mount, stage.PartitionNone)
			m.k.fail = func(_ int, call string) error {
				if call == "make" {
					return fault.New(fault.NoSpace, "", "mkfs")
				}
				return nil
			}
			if err := s.Stage(ctx, v); !errors.Is(err, fault.NoSpace) {
				t.Fatal(err)
			}
			m.hostd.FailNext(func(op, _ string) error {
				if op == "attach" {
					return fault.New(tc.kind, "", "attach fails")
				}
				return nil
			})
			err := s.Unstage(ctx, v.ID, v.StagingPath)
			if tc.held {
				if !errors.Is(err, tc.kind) {
					t.Fatalf("unstage: %v", err)
				}
				m.hostd.FailNext(nil)
				err = s.Unstage(ctx, v.ID, v.StagingPath)
			}
			if err != nil {
				t.Fatal(err)
			}
			if told.has("HalfFormatted", v.ID) == tc.held || (m.k.content[v.ID] == "") != tc.held {
				t.Errorf("told %v, content %q", told.all, m.k.content[v.ID])
			}
			m.hostd.FailNext(nil)
			m.clean("at the end")
		})
	}
}

// Whoever has a disk detached tells it, also in the midst of a Stage that fails afterwards.
func TestDetachIsTold(t *testing.T) {
	ctx := context.Background()
	for name, tc := range map[string]struct {
		lost bool   // the server of a staged disk, before
		fail string // the call that fails
	}{
		"a lost server, then no session": {true, "session"},
		"no device":                      {false, "export"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMachine(t)
			s := m.service()
			v := m.volume(stage.Mount, stage.PartitionNone)
			if tc.lost {
				if err := errors.Join(s.Stage(ctx, v), m.hostd.Memory.Detach(ctx, v.ID)); err != nil {
					t.Fatal(err)
				}
			}
			told := &noted{}
			s.Recorder = told
			m.k.fail = func(_ int, call string) error {
				if call == tc.fail {
					return fault.New(fault.Unavailable, "", "%s fails", call)
				}
				return nil
			}
			if err := s.Stage(ctx, v); !errors.Is(err, fault.Unavailable) {
				t.Fatal(err)
			}
			if !told.has("detached", v.ID) {
				t.Errorf("told: %v", told.all)
			}
		})
	}
}
