package vmdk

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// An undo file is lines of JSON: what it belongs to, then one record per file size, changed sector and replaced text, then a
// checksum of all before it.
type undoRecord struct {
	// Link, Version and the content IDs before and after the repair stand in the first record.
	Link    string `json:"link,omitempty"`
	Version int    `json:"version,omitempty"`
	CIDs    []CID  `json:"cids,omitempty"`

	File string `json:"file,omitempty"`
	// Size is the file's old size, NewSize what it became.
	Size    *int64 `json:"size,omitempty"`
	NewSize int64  `json:"newSize,omitempty"`
	// Sector and Old: the old content of a sector, shorter at the end of a file; New are the hashes of what it becomes.
	Sector int64    `json:"sector,omitempty"`
	Old    []byte   `json:"old,omitempty"`
	New    []string `json:"new,omitempty"`
	// Whole says that Old and New are about the whole file, which was replaced.
	Whole bool `json:"whole,omitempty"`

	Sum string `json:"sum,omitempty"` // last record
}

const undoVersion = 1

func hashOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// carryOut is steps 2 and 3 of Repair.
func carryOut(d fsx.Dir, name, undo string, o *overlay) error {
	if err := writeUndo(d, name, undo, o); err != nil {
		return fault.Wrap(err, "nothing was changed: undo file %s", undo)
	}
	files := map[string]fsx.File{}
	var err error
	for _, c := range o.log {
		if err = c.carryOut(d, files); err != nil {
			err = fault.Wrap(err, "half-way; run `vmdkctl repair --undo`, or repair it again: %s", c.file)
			break
		}
	}
	for _, f := range files { // each is synced: the last change of a file is a sync, and a replaced one is synced with its directory
		err = errors.Join(err, f.Close())
	}
	return err
}

func (c *change) carryOut(d fsx.Dir, files map[string]fsx.File) (err error) {
	if c.kind == changeReplace {
		return replaceFile(d, c.file, c.data)
	}
	f := files[c.file]
	if f == nil {
		if f, err = d.Open(c.file, fsx.ReadWrite); err != nil {
			return err
		}
		files[c.file] = f
	}
	switch c.kind {
	case changeWrite:
		_, err = f.WriteAt(c.data, c.at)
	case changeCopy:
		b := make([]byte, c.n)
		if _, err = f.ReadAt(b, c.source); err == nil || errors.Is(err, io.EOF) {
			_, err = f.WriteAt(b, c.at)
		}
	case changeTruncate:
		err = f.Truncate(c.n)
	case changeSync:
		err = f.Datasync()
	}
	return err
}

// writeUndo makes the undo file; it appears complete or not at all.
func writeUndo(d fsx.Dir, name, undo string, o *overlay) (err error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	first := undoRecord{Link: name, Version: undoVersion}
	for _, from := range []fsx.Dir{d, o} {
		if desc, _, err := readDescriptor(from, name); err == nil {
			first.CIDs = append(first.CIDs, desc.CID())
		}
	}
	err = enc.Encode(first)
	names := make([]string, 0, len(o.files))
	for n := range o.files {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		err = errors.Join(err, o.files[n].undo(enc))
	}
	if err != nil {
		return err
	}
	err = enc.Encode(undoRecord{Sum: hashOf(b.Bytes())})
	if err != nil {
		return err
	}
	if err := writeFile(d, tempName(undo), b.Bytes()); err != nil {
		return err
	}
	if err := d.Rename(tempName(undo), undo); err != nil {
		return errors.Join(err, removeIfThere(d, tempName(undo)))
	}
	return d.Sync()
}

// undo writes the records of one file.
func (n *overlayNode) undo(enc *json.Encoder) error {
	if n.whole {
		old := make([]byte, n.old)
		if err := readFull(n.base, old, 0); err != nil {
			return err
		}
		return enc.Encode(undoRecord{File: n.name, Old: old, New: n.hashes[0], Whole: true})
	}
	if len(n.sectors) == 0 && n.size == n.old {
		return nil
	}
	size := n.old
	if err := enc.Encode(undoRecord{File: n.name, Size: &size, NewSize: n.size}); err != nil {
		return err
	}
	at := make([]int64, 0, len(n.sectors))
	for s := range n.sectors {
		if s*SectorSize < n.old {
			at = append(at, s)
		}
	}
	slices.Sort(at)
	for _, s := range at {
		old := make([]byte, min(SectorSize, n.old-s*SectorSize))
		if err := readFull(n.base, old, s*SectorSize); err != nil {
			return err
		}
		if err := enc.Encode(undoRecord{File: n.name, Sector: s, Old: old, New: n.hashes[s]}); err != nil {
			return err
		}
	}
	return nil
}

// UndoRepair brings back what the repair that wrote the undo file found, and removes the file. It may be repeated after a
// crash or a failure, and after a repair that ended half-way. It refuses (fault.Precondition) if the disk was written since.
//
// Protocol: 1. read the file, and compare every sector it is about: old or new, or nothing is changed; 2. write the old
// sectors and descriptors, cut the files to their old sizes, sync; [a crash leaves a mixture, which 1 accepts] 3. remove
// the undo file, sync the directory.
func UndoRepair(d fsx.Dir, undo string) error {
	return fault.Wrap(undoRepair(d, undo), "undo of a repair: %s", undo)
}

func undoRepair(d fsx.Dir, undo string) error {
	records, err := readUndo(d, undo)
	if err != nil {
		return err
	}
	locks, err := lockFiles(d, records[0].Link)
	if err != nil {
		return err
	}
	defer locks.close()
	if desc, _, err := readDescriptor(d, records[0].Link); err == nil && !slices.Contains(records[0].CIDs, desc.CID()) {
		return fault.New(fault.Precondition, "keep the disk as it is; remove the undo file",
			"the disk was written after the repair: its content ID is %s", desc.CID())
	}
	files := map[string]fsx.File{}
	defer func() {
		for _, f := range files {
			_ = f.Close() // what was written is synced
		}
	}()
	for _, r := range records[1:] {
		if err := r.verify(d, files); err != nil {
			return err
		}
	}
	for _, r := range records[1:] {
		if err := r.undo(d, files); err != nil {
			return err
		}
	}
	for _, f := range files {
		if err := f.Datasync(); err != nil {
			return err
		}
	}
	return errors.Join(d.Sync(), d.Remove(undo), d.Sync())
}

func readUndo(d fsx.Dir, undo string) ([]undoRecord, error) {
	f, err := d.Open(undo, fsx.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	damaged := fault.New(fault.Damaged, "restore the disk from a backup", "it is no undo file, or was changed")
	in := bufio.NewReader(io.NewSectionReader(f, 0, info.Size))
	sum := sha256.New()
	var records []undoRecord
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil, damaged
		}
		var r undoRecord
		if json.Unmarshal(line, &r) != nil {
			return nil, damaged
		}
		if r.Sum != "" {
			if r.Sum != hex.EncodeToString(sum.Sum(nil)[:16]) || len(records) == 0 || records[0].Version != undoVersion {
				return nil, damaged
			}
			return records, nil
		}
		sum.Write(line)
		records = append(records, r)
	}
}

// verify refuses a file that is neither as before nor as after the repair.
func (r *undoRecord) verify(d fsx.Dir, files map[string]fsx.File) error {
	changed := fault.New(fault.Precondition, "keep the disk as it is; remove the undo file", "%s was changed after the repair", r.File)
	if r.Whole {
		text, err := readWhole(d, r.File)
		if err == nil && !bytes.Equal(text, r.Old) && !slices.Contains(r.New, hashOf(text)) {
			return changed
		}
		return err
	}
	f := files[r.File]
	if f == nil {
		var err error
		if f, err = d.Open(r.File, fsx.ReadWrite); err != nil {
			return err
		}
		files[r.File] = f
	}
	if r.Size != nil {
		info, err := f.Stat()
		if err == nil && (info.Size < *r.Size || info.Size > max(*r.Size, r.NewSize)) {
			return changed
		}
		return err
	}
	now := make([]byte, SectorSize) // a file that ended inside the sector may be longer now
	if _, err := f.ReadAt(now, r.Sector*SectorSize); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if !bytes.Equal(now[:len(r.Old)], r.Old) && !slices.Contains(r.New, hashOf(now)) {
		return changed
	}
	return nil
}

func (r *undoRecord) undo(d fsx.Dir, files map[string]fsx.File) error {
	switch {
	case r.Whole:
		return replaceFile(d, r.File, r.Old)
	case r.Size != nil:
		return files[r.File].Truncate(*r.Size)
	}
	_, err := files[r.File].WriteAt(r.Old, r.Sector*SectorSize)
	return err
}

func readWhole(d fsx.Dir, name string) (b []byte, err error) {
	f, err := d.Open(name, fsx.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil || info.Size > maxDescriptorBytes {
		return nil, errors.Join(err, fault.Damaged)
	}
	b = make([]byte, info.Size)
	return b, readFull(f, b, 0)
}

// heldFiles are the extents of a link, locked for writing.
type heldFiles []fsx.File

func (h heldFiles) close() {
	for _, f := range h {
		_ = f.Close() // gives the lock up; nothing was written through it
	}
}

// lockFiles keeps everybody else away. It needs no more of a damaged disk than names.
func lockFiles(d fsx.Dir, name string) (h heldFiles, err error) {
	names := []string{name}
	if desc, embedded, err := readDescriptor(d, name); err == nil && !embedded {
		for _, x := range desc.Extents() {
			if x.Name != "" && x.Access != "NOACCESS" {
				names = append(names, x.Name)
			}
		}
	}
	for i, n := range names {
		f, err := d.Open(n, fsx.ReadWrite)
		if err != nil {
			if i > 0 && (errors.Is(err, fs.ErrNotExist) || fault.KindOf(err) == fault.Invalid) {
				continue // Check reports it
			}
			h.close()
			return nil, err
		}
		h = append(h, f)
		if err := f.Lock(fsx.LockWrite); err != nil && !errors.Is(err, fault.Unsupported) {
			h.close()
			return nil, fault.Wrap(err, "%s", n)
		}
	}
	return h, nil
}
