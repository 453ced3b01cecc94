package store_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

const sector = 512

// model is what every state of a store must be: names and sizes as they were after some step, sectors as of that step or a
// later one.
type model struct {
	names     []map[string]int // after each step: path to file
	sizes     []map[int]int
	versions  map[int][]version // of each file, by step
	files     int
	committed int         // this step's names are durable
	synced    map[int]int // the sectors of a file are at least of this step
}

type version struct {
	step int
	data []byte
}

func newModel() *model {
	return &model{names: []map[string]int{{}}, sizes: []map[int]int{{}}, versions: map[int][]version{}, synced: map[int]int{}}
}

func (m *model) step() int               { return len(m.names) - 1 }
func (m *model) now() map[string]int     { return m.names[m.step()] }
func (m *model) content(file int) []byte { v := m.versions[file]; return v[len(v)-1].data }

// next begins the state after one more step.
func (m *model) next() {
	m.names = append(m.names, maps.Clone(m.now()))
	m.sizes = append(m.sizes, maps.Clone(m.sizes[len(m.sizes)-1]))
}

func (m *model) set(file int, data []byte) {
	m.versions[file] = append(m.versions[file], version{m.step(), data})
	m.sizes[m.step()][file] = len(data)
}

// moment is a model as it is to be judged at a moment: the step that is being made counts, and what comes later does not.
type moment struct {
	*model
	upTo      int
	committed int
	synced    map[int]int
}

func (m *model) moment() moment { return moment{m, m.step(), m.committed, maps.Clone(m.synced)} }

// walk does random things to a store and to its model.
type walk struct {
	*model
	s     *store.Store
	rng   *rand.Rand
	dirs  map[string]fsx.Dir
	stamp byte
	note  func(begun bool, m moment) // called before and after every step
}

func newWalk(s *store.Store, seed uint64) *walk {
	return &walk{model: newModel(), s: s, rng: rand.New(rand.NewPCG(seed, 7)), dirs: map[string]fsx.Dir{"": s.Root()}, note: func(bool, moment) {}}
}

// open makes the directory that is beside the root.
func (w *walk) open() error {
	if err := w.dirs[""].Mkdir("d"); err != nil && !errors.Is(err, fault.Exists) {
		return err
	}
	d, err := w.dirs[""].Sub("d")
	w.dirs["d"] = d
	if err != nil {
		return err
	}
	return w.dirs[""].Sync()
}

func (w *walk) pick() (dir, name string) {
	return []string{"", "d"}[w.rng.IntN(2)], string(rune('w' + w.rng.IntN(4)))
}

// limit is the largest file, in bytes.
const limit = 40 << 10

// one does a random step; ops has the kinds that may come.
func (w *walk) one() error {
	before := w.s.Info().Generation
	w.next()
	w.note(true, w.moment())
	err := w.do()
	if err != nil {
		return err
	}
	if w.s.Info().Generation != before && w.committed < w.step()-1 {
		w.committed = w.step() - 1 // by the way
	}
	w.note(false, w.moment())
	return nil
}

func (w *walk) do() error {
	dir, name := w.pick()
	d, path := w.dirs[dir], dir+"/"+name
	id, there := w.now()[path]
	if !there || w.rng.IntN(20) == 0 {
		return w.create(d, path, name)
	}
	switch k := w.rng.IntN(24); {
	case k < 3:
		return w.entry(d, dir, path, name)
	case k < 5:
		if err := d.Sync(); err != nil {
			return err
		}
		return w.promised(!maps.Equal(w.entries(dir, w.step()), w.entries(dir, w.committed)))
	default:
		f, err := d.Open(name, fsx.ReadWrite)
		if err != nil {
			return err
		}
		defer f.Close()
		if k < 9 {
			if err := f.Datasync(); err != nil {
				return err
			}
			w.synced[id] = w.step()
			return w.promised(w.sizes[w.step()][id] != w.sizes[w.committed][id])
		}
		return w.data(f, id, k)
	}
}

// promised notes what a sync says is durable: whatever differs from what a commit made durable before. The store has one
// catalogue, so a commit for one thing is a commit for everything.
func (w *walk) promised(differs bool) error {
	if differs {
		w.committed = w.step()
	}
	return nil
}

// entries are the names of one directory after a step.
func (w *walk) entries(dir string, step int) map[string]int {
	out := map[string]int{}
	for p, id := range w.names[step] {
		if strings.HasPrefix(p, dir+"/") {
			out[p] = id
		}
	}
	return out
}

func (w *walk) create(d fsx.Dir, path, name string) error {
	_, there := w.now()[path]
	f, err := d.Open(name, fsx.ReadWrite|fsx.Create|fsx.Exclusive)
	if there {
		if !errors.Is(err, fault.Exists) {
			return fmt.Errorf("create %s again: %v", path, err)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	w.files++
	w.now()[path] = w.files
	w.set(w.files, nil)
	return nil
}

func (w *walk) entry(d fsx.Dir, dir, path, name string) error {
	_, to := w.pick()
	target, now := dir+"/"+to, w.now()
	switch w.rng.IntN(3) {
	case 0:
		delete(now, path)
		return d.Remove(name)
	case 1:
		if now[target] != now[path] {
			now[target] = now[path]
			delete(now, path)
		}
		return d.Rename(name, to)
	}
	if _, taken := now[target]; taken {
		return nil
	}
	now[target] = now[path]
	return d.LinkFrom(d, name, to)
}

func (w *walk) data(f fsx.File, id, k int) error {
	data := bytes.Clone(w.content(id))
	off := w.rng.IntN(limit/sector) * sector
	n := (1 + w.rng.IntN(20)) * sector
	grow := func(to int) {
		if len(data) < to {
			data = append(data, make([]byte, to-len(data))...)
		}
	}
	var err error
	switch {
	case k < 16:
		w.stamp = w.stamp%250 + 1
		p := bytes.Repeat([]byte{w.stamp}, n)
		grow(off + n)
		copy(data[off:], p)
		_, err = f.WriteAt(p, int64(off))
	case k < 18:
		to := off + w.rng.IntN(2)*100
		grow(to)
		data = data[:to]
		err = f.Truncate(int64(to))
	case k < 20:
		if off < len(data) {
			clear(data[off:min(len(data), off+n)])
		}
		err = f.Punch(int64(off), int64(n))
	case k < 22:
		if off < len(data) {
			clear(data[off:min(len(data), off+n)])
		}
		err = f.Zero(int64(off), int64(n))
	default:
		grow(off + n)
		err = f.Allocate(int64(off), int64(n))
	}
	if k >= 20 && k < 22 || !errors.Is(err, fault.NoSpace) { // without room nothing is written; but what has a place was zeroed
		w.set(id, data)
	}
	return err
}

// found is a store as it is after a crash.
func found(s *store.Store) (map[string][]byte, map[string]uint64, error) {
	content, inodes := map[string][]byte{}, map[string]uint64{}
	for _, dir := range []string{"", "d"} {
		d := s.Root()
		if dir != "" {
			var err error
			if d, err = d.Sub(dir); err != nil {
				return nil, nil, err
			}
		}
		names, err := d.List()
		if err != nil {
			return nil, nil, err
		}
		for _, name := range names {
			info, err := d.Stat(name)
			if err != nil {
				return nil, nil, err
			}
			if info.Mode.IsDir() {
				continue
			}
			f, err := d.Open(name, fsx.ReadOnly)
			if err != nil {
				return nil, nil, err
			}
			p := make([]byte, info.Size)
			if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
				return nil, nil, err
			}
			f.Close()
			content[dir+"/"+name], inodes[dir+"/"+name] = p, info.Inode
		}
	}
	return content, inodes, nil
}

// judge tells why a store cannot be what a crash left.
func (m moment) judge(s *store.Store) error {
	content, inodes, err := found(s)
	if err != nil {
		return err
	}
	why := fmt.Errorf("no step from %d to %d", m.committed, m.upTo)
	for j := m.upTo; j >= m.committed; j-- {
		if err := m.isStep(j, content, inodes); err == nil {
			return nil
		} else if j == m.committed {
			why = fmt.Errorf("step %d: %w", j, err)
		}
	}
	return why
}

func (m moment) isStep(j int, content map[string][]byte, inodes map[string]uint64) error {
	if len(content) != len(m.names[j]) {
		return fmt.Errorf("%d names, want %v", len(content), m.names[j])
	}
	same := map[int]uint64{}
	for path, id := range m.names[j] {
		data, ok := content[path]
		if !ok || len(data) != m.sizes[j][id] {
			return fmt.Errorf("%s has %d bytes (%v), want %d", path, len(data), ok, m.sizes[j][id])
		}
		if other, ok := same[id]; ok && other != inodes[path] {
			return fmt.Errorf("%s is no link any more", path)
		}
		same[id] = inodes[path]
		if err := m.sectors(id, data); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	return nil
}

// sectors checks each against the versions that may be there.
func (m moment) sectors(id int, data []byte) error {
	all := m.versions[id]
	first, least := 0, max(m.committed, m.synced[id])
	for i, v := range all {
		if v.step <= least {
			first = i
		}
	}
	known := func(from, to int) bool {
		got := data[from:to]
		return slices.ContainsFunc(all[first:], func(v version) bool {
			return v.step <= m.upTo && len(v.data) >= to && bytes.Equal(v.data[from:to], got)
		})
	}
	for at := 0; at < len(data); at += sector {
		if known(at, min(len(data), at+sector)) {
			continue
		}
		// A sector in which the file ended for a while can have parts of two versions.
		for part := at; part < min(len(data), at+sector); part += 4 {
			if !known(part, min(len(data), part+4)) {
				return fmt.Errorf("byte %d of file %d is %#x, which is of no version from step %d on", part, id, data[part], least)
			}
		}
	}
	return nil
}
