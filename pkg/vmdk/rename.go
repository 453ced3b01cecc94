package vmdk

import (
	"errors"
	"io/fs"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Renamed is what Rename did.
type Renamed struct {
	Files    []string `json:"files"`              // the names that the disk has now, descriptor first
	Children []string `json:"children,omitempty"` // descriptors in the directory that name the disk as their parent, and were told
}

// Rename gives a closed link another name in its directory: descriptor and extents, and what the children there record of it. Kinds:
// InUse, Exists, Invalid, NotFound, Unsupported (no hard links).
//
//  1. Every extent gets its new name beside the old one. [A crash until 3 leaves second names, which the next try takes.]
//  2. The new descriptor, under a temporary name, synced, then linked; sync the directory: from here on both names open the disk.
//  3. The children's descriptors, each by rename. [A crash between 2 and 5 leaves both names; repeated, it goes on from there.]
//  4. Remove the old descriptor. 5. Remove the old names of the extents, sync the directory.
func Rename(d fsx.Dir, old, next string) (r Renamed, err error) { return rename(d, old, next, false) }

// PlanRename says what Rename would do.
func PlanRename(d fsx.Dir, old, next string) (Renamed, error) { return rename(d, old, next, true) }

func rename(d fsx.Dir, old, next string, dryRun bool) (r Renamed, err error) {
	l, err := Open(d, old, Options{Lock: true})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if _, err := stemOf(next, l.desc.Load().IsChild()); err != nil {
		return r, err
	}
	if next == old {
		return r, fault.New(fault.Invalid, "choose another name", "%s is its name already", old)
	}
	n := &renaming{d: d, l: l, old: old, next: next, dryRun: dryRun}
	if err := n.newNames(); err != nil {
		return r, fault.Wrap(err, "rename %s to %s", old, next)
	}
	r.Files = append(r.Files, next)
	for _, x := range n.lines {
		if x.Name != "" && x.Name != next {
			r.Files = append(r.Files, x.Name)
		}
	}
	if dryRun {
		r.Children, err = ChildrenOf(d, old)
		return r, err
	}
	if r.Children, err = n.tellChildren(); err == nil {
		err = n.removeOld()
	}
	return r, fault.Wrap(err, "rename %s to %s", old, next)
}

type renaming struct {
	d         fsx.Dir
	l         *Link
	old, next string
	dryRun    bool
	lines     []ExtentLine // as they will be
}

// newNames is steps 1 and 2.
func (n *renaming) newNames() error {
	was, will := strings.TrimSuffix(n.old, ".vmdk"), strings.TrimSuffix(n.next, ".vmdk")
	n.lines = n.l.desc.Load().Extents()
	if n.l.embedded {
		n.lines[0].Name = n.next
		if err := n.link(n.old, n.next); err != nil || n.dryRun {
			return err
		}
		return n.d.Sync()
	}
	for i := range n.lines {
		x := &n.lines[i]
		rest, ours := strings.CutPrefix(x.Name, was+"-")
		if x.Name == "" || !ours { // no file, or a name that has nothing to do with the disk's
			continue
		}
		x.Name = will + "-" + rest
		if err := n.link(was+"-"+rest, x.Name); err != nil {
			return err
		}
	}
	next := n.l.Descriptor()
	if err := next.SetExtents(n.lines); err != nil {
		return err
	}
	if text, _, err := readDescriptor(n.d, n.next); err == nil {
		if string(text.Text()) == string(next.Text()) { // an earlier try came so far
			return n.d.Sync()
		}
		return fault.New(fault.Exists, "choose another name", "%s is another disk", n.next)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if n.dryRun {
		return nil
	}
	temp := tempName(n.next)
	if err := writeFile(n.d, temp, next.Text()); err != nil {
		return err
	}
	if err := n.d.LinkFrom(n.d, temp, n.next); err != nil {
		return errors.Join(err, removeIfThere(n.d, temp))
	}
	return errors.Join(n.d.Remove(temp), n.d.Sync())
}

// link gives a file a second name, unless it has it.
func (n *renaming) link(from, to string) error {
	err := fs.ErrExist
	if !n.dryRun {
		err = n.d.LinkFrom(n.d, from, to)
	} else if _, serr := n.d.Stat(to); errors.Is(serr, fs.ErrNotExist) {
		return nil
	}
	if err == nil || !errors.Is(err, fs.ErrExist) {
		if fault.KindOf(err) == fault.Unsupported || fault.KindOf(err) == fault.Denied {
			return fault.New(fault.Unsupported, "convert it to a disk with the new name", "this file system has no hard links: %w", err)
		}
		return err
	}
	a, err := n.d.Stat(from)
	if err != nil {
		return err
	}
	b, err := n.d.Stat(to)
	if err != nil {
		return err
	}
	if a.Inode != b.Inode || a.Device != b.Device {
		return fault.New(fault.Exists, "choose another name", "%s is there", to)
	}
	return nil
}

// tellChildren is step 3.
func (n *renaming) tellChildren() (told []string, err error) {
	children, err := ChildrenOf(n.d, n.old)
	for _, name := range children {
		desc, _, err := readDescriptor(n.d, name)
		if err == nil {
			err = Rebind(n.d, name, Place{ParentCID: desc.ParentCID(), Parent: n.next})
		}
		if err != nil {
			return told, err
		}
		told = append(told, name)
	}
	return told, err
}

// removeOld is steps 4 and 5.
func (n *renaming) removeOld() error {
	if err := removeIfThere(n.d, n.old); err != nil {
		return err
	}
	for i, x := range n.l.desc.Load().Extents() {
		if x.Name != "" && x.Name != n.lines[i].Name && !n.l.embedded {
			if err := removeIfThere(n.d, x.Name); err != nil {
				return err
			}
		}
	}
	if err := n.d.Sync(); err != nil || !n.l.embedded {
		return err
	}
	// What the descriptor calls the file it lies in nobody reads; it is put right all the same.
	next := n.l.Descriptor()
	if err := next.SetExtents(n.lines); err != nil {
		return err
	}
	return storeEmbedded(n.d, n.next, next.Text())
}

// Delete removes a closed link: its descriptor, then its extents; it returns their names. Kinds: InUse, Precondition (a child is in the
// directory).
//
//  1. Remove the descriptor, sync the directory: the commit point. 2. Remove the extents. [A crash between leaves extents that nothing names.]
func Delete(d fsx.Dir, name string, dryRun bool) (files []string, err error) {
	l, err := Open(d, name, Options{Lock: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	children, err := ChildrenOf(d, name)
	if err != nil {
		return nil, err
	}
	if len(children) > 0 {
		return nil, fault.New(fault.Precondition, "delete these first, or rebase them", "%s is the parent of %s", name, strings.Join(children, ", "))
	}
	files = []string{name}
	for _, e := range l.extents {
		if e.Name != "" && !l.embedded {
			files = append(files, e.Name)
		}
	}
	if dryRun {
		return files, nil
	}
	if err := errors.Join(d.Remove(name), d.Sync()); err != nil {
		return nil, fault.Wrap(err, "delete %s", name)
	}
	for _, f := range files[1:] {
		if err := removeIfThere(d, f); err != nil {
			return files, fault.Wrap(err, "delete %s", f)
		}
	}
	return files, d.Sync()
}

// ChildrenOf are the descriptors of the directory that name a link as their parent.
func ChildrenOf(d fsx.Dir, parent string) (children []string, err error) {
	names, err := d.List()
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, ".vmdk") || name == parent || strings.HasPrefix(name, ".") {
			continue
		}
		if desc, _, err := readDescriptor(d, name); err == nil && desc.IsChild() && desc.ParentHint() == parent {
			children = append(children, name)
		}
	}
	return children, nil
}
