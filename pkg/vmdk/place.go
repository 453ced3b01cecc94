package vmdk

import (
	"errors"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Place is what a descriptor says about the place of its link in a chain, and whose content it has.
type Place struct {
	CID       CID    // 0: leave it
	LongID    string // "": leave it if the CID stays, else a new one
	ParentCID CID    // NoParent: the link is a base
	Parent    string // file name of the parent
	UUID      string // of the disk; "": leave it
}

// Rebind makes the descriptor of a closed link say p, durably. It is changed as a whole or not at all, and only made durable
// if it says so already: a process may have died before its sync.
func Rebind(d fsx.Dir, name string, p Place) error {
	desc, embedded, err := readDescriptor(d, name)
	if err != nil {
		return err
	}
	l := &Link{Name: name, dir: d, embedded: embedded}
	l.desc.Store(desc)
	if err := l.Rebind(p); err != nil || l.desc.Load() != desc {
		return err
	}
	f, err := d.Open(name, fsx.ReadOnly)
	if err != nil {
		return fault.Wrap(err, "rebind %s", name)
	}
	return fault.Wrap(errors.Join(f.Datasync(), f.Close(), d.Sync()), "rebind %s", name)
}

// Rebind is Rebind for an open link. Extents and tables are not touched; requests may go on.
func (l *Link) Rebind(p Place) error {
	next, err := p.apply(l.desc.Load())
	if err != nil {
		return fault.Wrap(err, "rebind %s", l.Name)
	}
	if string(next.Text()) == string(l.desc.Load().Text()) {
		return nil
	}
	return fault.Wrap(l.store(next, true), "rebind %s", l.Name)
}

// Alias makes name a stand-alone descriptor of this link's extents with another place: who reads name sees this link's
// content from then on.
func (l *Link) Alias(name string, p Place) error {
	next, err := p.apply(l.desc.Load())
	if err == nil && l.embedded {
		lines := next.Extents()
		lines[0].Name = l.Name
		err = errors.Join(next.Set("createType", string(TwoGbMaxExtentSparse)), next.SetExtents(lines))
	}
	if err == nil {
		err = replaceFile(l.dir, name, next.Text())
	}
	return fault.Wrap(err, "descriptor %s", name)
}

// apply gives a copy of a descriptor with this place.
func (p Place) apply(old *Descriptor) (*Descriptor, error) {
	d := old.Clone()
	var errs []error
	set := func(key, value string) { errs = append(errs, d.Set(key, value)) }
	if p.CID != 0 && p.CID != d.CID() {
		set("CID", p.CID.String())
		if p.LongID == "" {
			p.LongID = newLongContentID(p.CID)
		}
	}
	if p.LongID != "" && p.LongID != d.LongContentID() {
		set("ddb.longContentID", p.LongID)
	}
	wasChild := d.IsChild()
	if p.ParentCID != d.ParentCID() {
		set("parentCID", p.ParentCID.String())
	}
	switch {
	case p.ParentCID == NoParent:
		d.remove(func(l *line) bool { return l.kind == lineHeader && l.key == "parentfilenamehint" })
		if wasChild {
			errs = append(errs, d.setGeometry())
		}
	case p.Parent == "":
		return nil, fault.New(fault.Invalid, "", "a child needs the name of its parent")
	case p.Parent != d.ParentHint():
		set("parentFileNameHint", p.Parent)
	}
	if p.UUID != "" {
		u, err := ParseUUID(p.UUID)
		if err != nil {
			return nil, err
		}
		if have, ok := d.UUID(); !ok || have != u {
			set("ddb.uuid", u.String())
		}
	}
	return d, errors.Join(errs...)
}
