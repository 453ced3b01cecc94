package vmdk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// crashed are the defects whose repairs write in every way that there is: entries, grains that move, tables, directories,
// headers, descriptors inside and beside the extent.
var crashed = []string{"entry missing in the table", "shared", "inside the metadata, in both", "directory beyond the end", "table beyond the end",
	"copy of a table missing", "header ahead of the line", "zeros without the flag, in both", "no header", "unclean", "long content ID"}

func eachCrashed(t *testing.T, do func(t *testing.T, im *image)) {
	for _, k := range []struct {
		name    string
		healthy *image
		harms   []harm
		these   []string
	}{
		{"COWD", cowdImage(t, 1, true), cowdHarms(1), []string{"shared", "inside the metadata", "free sector too low", "table beyond the end", "no header"}},
		{"stream", streamImage(t, false), streamHarms(false), []string{"entry missing", "table missing", "directory beyond the end"}},
		{"footer", streamImage(t, true), streamHarms(true), []string{"table missing", "no footer", "cut in the directory", "cut in the last record"}},
	} {
		for _, h := range k.harms {
			if slices.Contains(k.these, h.name) && (!raceDetector || h.name == k.these[0]) { // all of them in suite crash
				t.Run(k.name+"/"+h.name, func(t *testing.T) {
					im := k.healthy.clone()
					im.t = t
					h.on(im)
					do(t, im)
				})
			}
		}
	}
	for _, f := range formats {
		if raceDetector || f.p.GrainSectors == 0 && f.name != "one table" {
			continue
		}
		healthy := newImage(t, f)
		for _, m := range sparseMutations {
			if slices.Contains(crashed, m.name) {
				t.Run(f.name+"/"+m.name, func(t *testing.T) {
					im := healthy.clone()
					im.t = t
					m.do(im.at(0))
					do(t, im)
				})
			}
		}
	}
}

var all = RepairParams{Fix: Repairable, Loss: true}

// TestRepairCrash: the power may fail at any point of a repair. Then undo brings back what was, and so does not beginning; or the
// repair is made again, with the same result.
func TestRepairCrash(t *testing.T) {
	eachCrashed(t, func(t *testing.T, im *image) {
		s := im.fs()
		s.Record()
		want, err := Repair(context.Background(), s.Root(), imageName, all)
		if err != nil {
			t.Fatal(err)
		}
		states := 0
		for cut := range s.Crashes(32, 1) {
			states++
			d := cut.Root()
			if _, err := d.Stat(UndoName(imageName)); err == nil {
				if err := UndoRepair(d, UndoName(imageName)); err != nil {
					t.Fatalf("undo: %v (%s)", err, cut.Cut())
				}
			}
			im.unchanged(t, d, cut.Cut())
		}
		for cut := range s.Crashes(4, 1) {
			d := cut.Root()
			if err := d.Remove(UndoName(imageName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
			again, err := Repair(context.Background(), d, imageName, all)
			if err != nil || again.After.Sound() != want.After.Sound() {
				t.Fatalf("again: %+v %v (%s)", again, err, cut.Cut())
			}
			got := im.read(d)
			for i, c := range im.read(s.Root()) {
				if i >= len(got) || got[i].err != nil || got[i].hash != c.hash {
					t.Fatalf("again: guest bytes from %d differ (%s)", c.off, cut.Cut())
				}
			}
		}
		if states < 3 {
			t.Fatalf("%d states", states)
		}
	})
}

// TestEverySyncOfRepairMatters: without any sync call of the code that repairs and undoes, some crash breaks what TestRepairCrash and
// TestRepairUndoCrash demand. Those of the code that writes disks have tests of their own (package chain).
func TestEverySyncOfRepairMatters(t *testing.T) {
	if raceDetector {
		return // suite crash runs it
	}
	needed := map[string]bool{}
	eachCrashed(t, func(t *testing.T, im *image) {
		for _, do := range []func(t *testing.T, im *image, without string) (map[string]int, error){repairStates, undoStates} {
			sites, err := do(t, im, "")
			if err != nil {
				t.Fatal(err)
			}
			for site := range sites {
				if strings.Contains(site, "vmdk/repair") && !needed[site] {
					_, err := do(t, im, site)
					if needed[site] = err != nil; err != nil {
						t.Logf("%s: %v", site, err)
					}
				}
			}
		}
	})
	for site, is := range needed {
		if !is {
			t.Errorf("nothing breaks without the sync at %s", site)
		}
	}
	if len(needed) < 4 { // the rest write into memory, and are carried out by these
		t.Errorf("only %d sync calls were seen", len(needed))
	}
}

// repairStates repairs without the sync calls of a site, and judges what a power loss leaves.
func repairStates(t *testing.T, im *image, without string) (map[string]int, error) {
	t.Helper()
	s := im.fs()
	s.Record()
	if without != "" {
		s.DropSync(without)
	}
	want, err := Repair(context.Background(), s.Root(), imageName, all)
	if err != nil {
		t.Fatal(err)
	}
	s.Mark("repaired")
	repaired := im.read(s.Root())
	for cut := range s.Crashes(32, 1) {
		d := cut.Root()
		if len(cut.Events()) > 0 {
			for i, c := range im.read(d) {
				if i >= len(repaired) || c.err != nil || c.hash != repaired[i].hash {
					return nil, fmt.Errorf("guest bytes from %d are not what the repair answered (%s)", c.off, cut.Cut())
				}
			}
			rep, err := Check(context.Background(), d, imageName)
			if err != nil || rep.Sound() != want.After.Sound() {
				return nil, fmt.Errorf("the repair is gone: %v %v (%s)", rep.Problems, err, cut.Cut())
			}
		}
		if _, err := d.Stat(UndoName(imageName)); err == nil {
			if err := UndoRepair(d, UndoName(imageName)); err != nil {
				return nil, fmt.Errorf("undo: %w (%s)", err, cut.Cut())
			}
		}
		if err := im.differs(d); err != nil {
			return nil, fmt.Errorf("%w (%s)", err, cut.Cut())
		}
	}
	return s.SyncSites(), nil
}

// undoStates is repairStates for an undo.
func undoStates(t *testing.T, im *image, without string) (map[string]int, error) {
	t.Helper()
	s := im.fs()
	r, err := Repair(context.Background(), s.Root(), imageName, all)
	if err != nil {
		t.Fatal(err)
	}
	s.Record()
	if without != "" {
		s.DropSync(without)
	}
	if err := UndoRepair(s.Root(), r.Undo); err != nil {
		t.Fatal(err)
	}
	s.Mark("undone")
	for cut := range s.Crashes(32, 1) {
		if _, err := cut.Root().Stat(r.Undo); err == nil && len(cut.Events()) > 0 {
			return nil, fmt.Errorf("the undo file is back (%s)", cut.Cut())
		}
		if err := UndoRepair(cut.Root(), r.Undo); err != nil && !errors.Is(err, fault.NotFound) {
			return nil, fmt.Errorf("%w (%s)", err, cut.Cut())
		}
		if err := im.differs(cut.Root()); err != nil {
			return nil, fmt.Errorf("%w (%s)", err, cut.Cut())
		}
	}
	return s.SyncSites(), nil
}

// differs tells which file is not what it was.
func (im *image) differs(d fsx.Dir) error {
	for n, b := range im.files {
		if !bytes.Equal(slurp(im.t, d, n), b) {
			return fmt.Errorf("%s is not what it was", n)
		}
	}
	return nil
}

// TestRepairUndoCrash: undo can be cut off and repeated.
func TestRepairUndoCrash(t *testing.T) {
	eachCrashed(t, func(t *testing.T, im *image) {
		s := im.fs()
		r, err := Repair(context.Background(), s.Root(), imageName, all)
		if err != nil {
			t.Fatal(err)
		}
		s.Record()
		if err := UndoRepair(s.Root(), r.Undo); err != nil {
			t.Fatal(err)
		}
		for cut := range s.Crashes(32, 1) {
			if err := UndoRepair(cut.Root(), r.Undo); err != nil && !errors.Is(err, fault.NotFound) {
				t.Fatalf("%v (%s)", err, cut.Cut())
			}
			im.unchanged(t, cut.Root(), cut.Cut())
		}
	})
}

// TestRepairFails: every operation of a repair may fail. Undo, or a second try, works.
func TestRepairFails(t *testing.T) {
	eachCrashed(t, func(t *testing.T, im *image) {
		for n := 0; ; n++ {
			s := im.fs()
			s.Record()
			s.FailAt(n, unix.EIO)
			_, err := Repair(context.Background(), s.Root(), imageName, all)
			if s.Failed() == 0 && err == nil {
				if n < 3 {
					t.Fatalf("%d operations", n)
				}
				return
			}
			s.Heal()
			if _, serr := s.Root().Stat(UndoName(imageName)); serr == nil {
				if err := UndoRepair(s.Root(), UndoName(imageName)); err != nil {
					t.Fatalf("undo after failure %d: %v", n, err)
				}
			} else if err == nil {
				t.Fatalf("failure %d went unnoticed", n)
			}
			im.unchanged(t, s.Root(), "failure")
		}
	})
}

func (im *image) unchanged(t *testing.T, d fsx.Dir, when string) {
	t.Helper()
	for n, b := range im.files {
		if !bytes.Equal(slurp(t, d, n), b) {
			t.Fatalf("%s is not what it was (%s)", n, when)
		}
	}
}

// TestUndoRefuses: what was written after the repair is not overwritten; what is no undo file is not used.
func TestUndoRefuses(t *testing.T) {
	healthy := newImage(t, formats[0])
	im := healthy.clone()
	sparseMutations[1].do(im.at(0))
	d := im.dir()
	r, err := Repair(context.Background(), d, imageName, all)
	if err != nil || r.Undo == "" || !r.Content {
		t.Fatalf("%+v %v", r, err)
	}
	if _, err := Repair(context.Background(), d, imageName, all); !errors.Is(err, fault.Exists) {
		t.Errorf("a second repair over the undo file of the first: %v", err)
	}
	l, err := Open(d, imageName, Options{ReadWrite: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(l.Begin(), l.CloseClean()); err != nil {
		t.Fatal(err)
	}
	if err := UndoRepair(d, r.Undo); !errors.Is(err, fault.Precondition) {
		t.Errorf("undo over a later write: %v", err)
	}
	patch(t, d, r.Undo, 40, 'x')
	if err := UndoRepair(d, r.Undo); !errors.Is(err, fault.Damaged) {
		t.Errorf("undo of a damaged file: %v", err)
	}
	if _, err := Repair(context.Background(), d, imageName, RepairParams{Fix: []Code{BadVersion}}); !errors.Is(err, fault.Unsupported) {
		t.Errorf("a code without a repair: %v", err)
	}
	f, err := d.Open(imageName, fsx.ReadWrite)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Lock(fsx.LockWrite); err != nil {
		t.Fatal(err)
	}
	if _, err := Repair(context.Background(), d, imageName, RepairParams{Fix: Repairable, Undo: "other"}); !errors.Is(err, fault.InUse) {
		t.Errorf("repair of a disk in use: %v", err)
	}
}
