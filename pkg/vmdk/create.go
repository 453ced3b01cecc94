package vmdk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strings"
	"syscall"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// CreateParams say what to make. Capacity and Type are needed, everything else has a default.
type CreateParams struct {
	Capacity int64 // bytes, a multiple of 512
	Type     Type
	Format   Format // default Thin; sparse types are always thin
	// GrainSectors is the grain size of sparse types, a power of two from 8 to 2048; default 128 (64 KiB). vmfsSparse: from 1,
	// which is the default, and what ESXi has.
	GrainSectors int64
	// ExtentSize is the most guest bytes per extent of split types; default 2040 GiB sparse, 2047 MiB flat.
	ExtentSize  int64
	UUID        UUID   // default: a new one; children inherit the base's and record none
	AdapterType string // default lsilogic
	// Parent makes a child of this link; sparse types only.
	Parent *Parent
	// Resume says that the directory belongs to this disk alone: files that an interrupted earlier try left under the
	// names of the extents are replaced. Otherwise a file that is there is fault.Exists.
	Resume bool
	// Progress, if set, is told how many of the bytes that must be written are written.
	Progress func(done, total int64)
}

// Parent is what a child records of its parent.
type Parent struct {
	Hint          string // the parent's file name as the child finds it
	CID           CID
	LongContentID string
	Type          Type // "": not known
}

// AsParent is what a child of this link records.
func (l *Link) AsParent() *Parent {
	d := l.desc.Load()
	return &Parent{Hint: l.Name, CID: d.CID(), LongContentID: d.LongContentID(), Type: d.Type()}
}

// Info describes a link.
type Info struct {
	Name      string       `json:"name"`
	Type      Type         `json:"type"`
	Capacity  int64        `json:"capacity"`
	CID       CID          `json:"cid"`
	LongID    string       `json:"longContentID,omitempty"`
	ParentCID CID          `json:"parentCID"`
	Parent    string       `json:"parent,omitempty"`
	UUID      string       `json:"uuid,omitempty"`
	Adapter   string       `json:"adapterType,omitempty"`
	Unclean   bool         `json:"unclean,omitempty"`
	Extents   []ExtentInfo `json:"extents"`
}

// ExtentInfo describes an extent of a link. Sizes are bytes.
type ExtentInfo struct {
	Name      string `json:"name,omitempty"`
	Kind      string `json:"kind"`
	Start     int64  `json:"start"`
	Size      int64  `json:"size"`
	GrainSize int64  `json:"grainSize,omitempty"`
}

// Info describes the link.
func (l *Link) Info() *Info {
	d := l.desc.Load()
	i := &Info{Name: l.Name, Type: d.Type(), Capacity: l.Size(), CID: d.CID(), LongID: d.LongContentID(),
		ParentCID: d.ParentCID(), Parent: d.ParentHint(), Unclean: l.Unclean()}
	if u, ok := d.UUID(); ok {
		i.UUID = u.String()
	}
	i.Adapter, _ = d.Get("ddb.adapterType")
	for _, e := range l.extents {
		i.Extents = append(i.Extents, ExtentInfo{Name: e.Name, Kind: e.Kind.String(), Start: e.Start, Size: e.Len, GrainSize: e.GrainBytes()})
	}
	return i
}

var (
	badStem   = regexp.MustCompile(`-(flat|pt|ctk|delta|sesparse|rdmp?|[sf]\d{3,})$`)
	childStem = regexp.MustCompile(`-\d{6}$`)
)

// stemOf is the name without .vmdk, checked so that no tool mistakes it for an extent.
func stemOf(name string, child bool) (string, error) {
	stem, ok := strings.CutSuffix(name, ".vmdk")
	if !ok || stem == "" || strings.ContainsAny(name, "/\\") {
		return "", fault.New(fault.Invalid, "write a plain file name such as disk.vmdk", "%q is not a descriptor name", clip(name))
	}
	if badStem.MatchString(stem) || !child && childStem.MatchString(stem) {
		return "", fault.New(fault.Invalid, "choose another name", "%q looks like an extent or a delta of another disk", clip(name))
	}
	if len(name) > 255-len("-s00000")-len("..new") {
		return "", fault.New(fault.Invalid, "choose a shorter name", "%q... is %d bytes long", name[:32], len(name))
	}
	return stem, checkValue("name", name)
}

func (p *CreateParams) complete() error {
	p.Format = orDefault(p.Format, Thin)
	p.AdapterType = orDefault(p.AdapterType, "lsilogic")
	p.Type = typeOf(string(p.Type))
	grain, least := int64(DefaultGrainSectors), int64(minGrainSectors)
	if p.Type == VMFSSparse {
		grain, least = CowdGrainSectors, CowdGrainSectors
	}
	p.GrainSectors = orDefault(p.GrainSectors, grain)
	switch p.Type {
	case MonolithicFlat, MonolithicSparse, VMFS, VMFSSparse:
		p.ExtentSize = MaxCapacity
	case TwoGbMaxExtentFlat:
		p.ExtentSize = orDefault(p.ExtentSize, maxSplitFlat)
	case TwoGbMaxExtentSparse:
		p.ExtentSize = orDefault(p.ExtentSize, MaxSparseExtent)
	default:
		return fault.New(fault.Invalid, "", "type %q is not one of %s", p.Type, Creatable())
	}
	most := MaxCapacity
	if p.Type.Sparse() && !p.Type.Split() {
		most = MaxSparseExtent
	}
	switch {
	case p.Capacity < SectorSize || p.Capacity > most || p.Capacity%SectorSize != 0:
		return fault.New(fault.OutOfRange, "", "capacity %d is not a multiple of 512 from 512 to %d bytes", p.Capacity, most)
	case p.Format != Thin && p.Format != ZeroedThick && p.Format != EagerZeroedThick:
		return fault.New(fault.Invalid, "", "format %q is not one of %s, %s, %s", p.Format, Thin, ZeroedThick, EagerZeroedThick)
	case p.Format != Thin && p.Type.Sparse():
		return fault.New(fault.Invalid, "use type monolithicFlat", "format %s needs a flat type, not %s", p.Format, p.Type)
	case p.GrainSectors < least || p.GrainSectors > maxGrainSectors || p.GrainSectors&(p.GrainSectors-1) != 0:
		return fault.New(fault.OutOfRange, "", "grain size %d is not a power of two from %d to %d sectors", p.GrainSectors, least, maxGrainSectors)
	case p.ExtentSize < 1<<20 || p.ExtentSize%(p.GrainSectors*SectorSize) != 0 || p.Type.Sparse() && min(p.ExtentSize, p.Capacity) > MaxSparseExtent:
		return fault.New(fault.OutOfRange, "", "extent size %d is not a multiple of the grain from 1 MiB to %d bytes", p.ExtentSize, MaxSparseExtent)
	case p.Capacity/p.ExtentSize >= maxExtents:
		return fault.New(fault.OutOfRange, "use larger extents", "%d bytes in extents of %d are more than %d extents", p.Capacity, p.ExtentSize, maxExtents)
	case p.Parent != nil && !p.Type.Sparse():
		return fault.New(fault.Invalid, "use a sparse type", "a child cannot be %s", p.Type)
	case p.Parent != nil && p.Type == VMFSSparse && p.Parent.Type == SESparseType:
		return fault.New(fault.Invalid, "use type twoGbMaxExtentSparse", "ESXi does not mix vmfsSparse and seSparse links in a chain")
	case p.Parent != nil && (p.Parent.CID == NoParent || p.Parent.Hint == ""):
		return fault.New(fault.Invalid, "", "a child needs the content ID and the name of its parent")
	}
	return checkValue("adapter type", p.AdapterType)
}

func orDefault[T comparable](v, d T) T {
	var zero T
	if v == zero {
		return d
	}
	return v
}

// extentLines plans the extents of a type: names as VMware gives them, sizes up to p.ExtentSize.
func extentLines(stem, name string, t Type, from int, capacity, extentSize int64) []ExtentLine {
	var out []ExtentLine
	for i := from; capacity > 0; i++ {
		n := min(capacity, extentSize)
		capacity -= n
		x := ExtentLine{Access: "RW", Sectors: n / SectorSize, Type: "SPARSE"}
		switch t {
		case MonolithicFlat:
			x.Type, x.Name = "FLAT", stem+"-flat.vmdk"
		case TwoGbMaxExtentFlat:
			x.Type, x.Name = "FLAT", fmt.Sprintf("%s-f%03d.vmdk", stem, i+1)
		case TwoGbMaxExtentSparse:
			x.Name = fmt.Sprintf("%s-s%03d.vmdk", stem, i+1)
		case MonolithicSparse:
			x.Name = name
		case VMFS:
			x.Type, x.Name = "VMFS", stem+"-flat.vmdk"
		case VMFSSparse:
			x.Type, x.Name = "VMFSSPARSE", stem+"-delta.vmdk"
		}
		out = append(out, x)
	}
	return out
}

// Create makes a link: a base, or with Parent a child.
//
// Protocol: 1. make every extent, write its metadata, sync it; 2. sync the directory; [a crash until here leaves files
// that no descriptor names: with Resume the next try replaces them] 3. write the descriptor under a temporary name,
// sync; 4. move it to its name: this is the commit; 5. sync the directory. Called again for a disk that is there with
// the same parameters it answers with that disk; with others, fault.Exists. What a failed call made it removes.
func Create(ctx context.Context, d fsx.Dir, name string, p CreateParams) (*Info, error) {
	stem, err := stemOf(name, p.Parent != nil)
	if err == nil {
		err = p.complete()
	}
	if err != nil {
		return nil, fault.Wrap(err, "create %s", clip(name))
	}
	lines := extentLines(stem, name, p.Type, 0, p.Capacity, p.ExtentSize)
	if info, err := existing(d, name, &p, lines); info != nil || err != nil {
		return info, fault.Wrap(err, "create %s", name)
	}
	desc, err := newDescriptor(&p, lines)
	if err != nil {
		return nil, fault.Wrap(err, "create %s", name)
	}
	m := &maker{ctx: ctx, d: d, p: &p}
	if err := m.make(name, desc, lines); err != nil {
		return nil, fault.Wrap(errors.Join(noSpace(err), m.undo()), "create %s", name)
	}
	return infoOf(d, name)
}

// noSpace tells a full datastore as such also where only a sync found out (NFS): the files are removed, so nothing about
// them is uncertain.
func noSpace(err error) error {
	if fault.KindOf(err) != fault.NoSpace && (errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)) {
		return fault.New(fault.NoSpace, "free space on the datastore", "%w", err)
	}
	return err
}

func infoOf(d fsx.Dir, name string) (*Info, error) {
	l, err := Open(d, name, Options{})
	if err != nil {
		return nil, err
	}
	return l.Info(), l.Close()
}

// existing answers for a descriptor that is there already: the same disk, or fault.Exists.
func existing(d fsx.Dir, name string, p *CreateParams, lines []ExtentLine) (*Info, error) {
	if _, err := d.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if !p.Resume {
		return nil, fault.New(fault.Exists, "choose another name, or remove the disk", "%s is there", name)
	}
	info, err := infoOf(d, name)
	if err != nil {
		return nil, err
	}
	same := info.Type == p.Type && info.Capacity == p.Capacity && len(info.Extents) == len(lines)
	if p.Parent == nil {
		same = same && info.ParentCID == NoParent && (p.UUID.IsZero() || info.UUID == p.UUID.String())
	} else {
		same = same && info.ParentCID == p.Parent.CID && info.Parent == p.Parent.Hint
	}
	if !same {
		return nil, fault.New(fault.Exists, "choose another name, or remove the disk", "%s is a %s of %d bytes with other parameters", name, info.Type, info.Capacity)
	}
	return info, d.Sync() // the earlier try may have died before its last sync
}

// newDescriptor is the canonical text.
func newDescriptor(p *CreateParams, lines []ExtentLine) (*Descriptor, error) {
	c, parent, long := NeverWritten, NoParent, newLongContentID(NeverWritten)
	var b strings.Builder
	if p.Parent != nil {
		// A fresh child has its parent's content, so it has the parent's content ID until it is written.
		c, parent = p.Parent.CID, p.Parent.CID
		if long = p.Parent.LongContentID; long == "" {
			long = newLongContentID(c)
		}
		if err := checkValue("parent", p.Parent.Hint+long); err != nil {
			return nil, err
		}
	}
	fmt.Fprintf(&b, "# Disk DescriptorFile\nversion=1\nencoding=\"UTF-8\"\nCID=%s\nparentCID=%s\nisNativeSnapshot=\"no\"\ncreateType=\"%s\"\n", c, parent, p.Type)
	if p.Parent != nil {
		fmt.Fprintf(&b, "parentFileNameHint=\"%s\"\n", p.Parent.Hint)
	}
	b.WriteString("\n# Extent description\n")
	for _, x := range lines {
		b.WriteString(x.String() + "\n")
	}
	b.WriteString("\n# The Disk Data Base \n#DDB\n\n") // the blank is VMware's
	cyl, heads, spt := geometry(p.Capacity/SectorSize, p.AdapterType)
	fmt.Fprintf(&b, "ddb.adapterType = \"%s\"\nddb.geometry.cylinders = \"%d\"\nddb.geometry.heads = \"%d\"\nddb.geometry.sectors = \"%d\"\nddb.longContentID = \"%s\"\n",
		p.AdapterType, cyl, heads, spt, long)
	if p.Parent == nil {
		if p.UUID.IsZero() {
			p.UUID = NewUUID()
		}
		fmt.Fprintf(&b, "ddb.uuid = \"%s\"\n", p.UUID)
	}
	if p.Type == VMFS && p.Format == Thin {
		b.WriteString("ddb.thinProvisioned = \"1\"\n")
	}
	b.WriteString("ddb.virtualHWVersion = \"14\"\n")
	return ParseDescriptor([]byte(b.String()))
}
