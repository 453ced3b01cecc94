package vmdk

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Descriptor is the text that describes a link. It keeps every line as it was read; only what is set changes.
type Descriptor struct {
	lines []line
}

type lineKind int

const (
	lineOther  lineKind = iota // blank or comment
	lineHeader                 // key=value before the disk data base
	lineExtent
	lineDDB // ddb.key = "value"
)

type line struct {
	raw    string // without its end
	eol    string // "\n", "\r\n" or "" at the end of the text
	kind   lineKind
	key    string // lower case
	value  string
	extent ExtentLine
}

// ExtentLine is one extent of a descriptor.
type ExtentLine struct {
	Access  string // RW, RDONLY or NOACCESS
	Sectors int64
	Type    string // FLAT, SPARSE, ZERO, VMFS, ...
	Name    string // file name; empty for ZERO
	Offset  int64  // first sector in the file; FLAT only
	attrs   string // partitionUUID and deviceIdentifier, kept as they are
}

func (e ExtentLine) String() string {
	s := fmt.Sprintf("%s %d %s", e.Access, e.Sectors, e.Type)
	if e.Name != "" {
		s += ` "` + e.Name + `"`
	}
	if e.Type == "FLAT" {
		s += " " + strconv.FormatInt(e.Offset, 10)
	}
	if e.attrs != "" {
		s += " " + e.attrs
	}
	return s
}

// Get is the value of a header key or of a "ddb." key; keys are compared without case. An empty value counts as absent
// (VDDK: a key can be emptied but not deleted).
func (d *Descriptor) Get(key string) (string, bool) {
	if i := d.find(key); i >= 0 {
		return d.lines[i].value, d.lines[i].value != ""
	}
	return "", false
}

func (d *Descriptor) find(key string) int {
	key = strings.ToLower(key)
	for i := len(d.lines) - 1; i >= 0; i-- { // the last of duplicates wins
		l := &d.lines[i]
		if (l.kind == lineHeader || l.kind == lineDDB) && l.key == key {
			return i
		}
	}
	return -1
}

// plainKeys are the header keys whose value stands without quotes.
var plainKeys = map[string]bool{"version": true, "cid": true, "parentcid": true}

// Set changes a key or adds it where its section ends. A value that could end its line or its quotes is refused:
// there is no escape in this format, so it would inject lines.
func (d *Descriptor) Set(key, value string) error {
	if err := checkValue(key, value); err != nil {
		return err
	}
	lower := strings.ToLower(key)
	l := line{kind: lineHeader, key: lower, value: value, eol: "\n"}
	switch {
	case strings.HasPrefix(lower, "ddb."):
		l.kind = lineDDB
		l.raw = fmt.Sprintf(`%s = "%s"`, key, value)
	case plainKeys[lower]:
		l.raw = key + "=" + value
	default:
		l.raw = fmt.Sprintf(`%s="%s"`, key, value)
	}
	if i := d.find(key); i >= 0 {
		l.eol = d.lines[i].eol
		d.lines[i] = l
		return nil
	}
	at := len(d.lines)
	if l.kind == lineHeader {
		at = 1
		for i := range d.lines {
			if d.lines[i].kind == lineExtent { // VirtualBox insists on header, extents, data base
				break
			}
			if d.lines[i].kind == lineHeader {
				at = i + 1
			}
		}
	}
	d.insert(min(at, len(d.lines)), l)
	return nil
}

func (d *Descriptor) insert(at int, l line) {
	if at > 0 && d.lines[at-1].eol == "" {
		d.lines[at-1].eol = "\n"
	}
	d.lines = append(d.lines, line{})
	copy(d.lines[at+1:], d.lines[at:])
	d.lines[at] = l
}

// remove drops every line for which drop is true.
func (d *Descriptor) remove(drop func(*line) bool) {
	kept := d.lines[:0]
	for i := range d.lines {
		if !drop(&d.lines[i]) {
			kept = append(kept, d.lines[i])
		}
	}
	d.lines = kept
}

// Extents are the extent lines in order.
func (d *Descriptor) Extents() []ExtentLine {
	var out []ExtentLine
	for i := range d.lines {
		if d.lines[i].kind == lineExtent {
			out = append(out, d.lines[i].extent)
		}
	}
	return out
}

// SetExtents replaces the extent lines, where they stood.
func (d *Descriptor) SetExtents(extents []ExtentLine) error {
	for _, e := range extents {
		if err := checkValue("extent name", e.Name); err != nil {
			return err
		}
	}
	at := len(d.lines)
	for i := range d.lines {
		if d.lines[i].kind == lineExtent {
			at = i
			break
		}
	}
	d.remove(func(l *line) bool { return l.kind == lineExtent })
	for i, e := range extents {
		d.insert(at+i, line{kind: lineExtent, raw: e.String(), eol: "\n", extent: e})
	}
	return nil
}

// Type is the createType, by its usual name if it is an alias.
func (d *Descriptor) Type() Type {
	v, _ := d.Get("createType")
	return typeOf(v)
}

// CID is the content ID of this link.
func (d *Descriptor) CID() CID { return d.cid("CID") }

// ParentCID is the content ID the parent had when this link was made, NoParent for a base.
func (d *Descriptor) ParentCID() CID { return d.cid("parentCID") }

func (d *Descriptor) cid(key string) CID {
	v, ok := d.Get(key)
	if !ok {
		return NoParent
	}
	c, _ := parseCID(v) // the parser has checked it
	return c
}

// LongContentID is the 128-bit content ID in hexadecimal, "" if none is recorded.
func (d *Descriptor) LongContentID() string {
	v, _ := d.Get("ddb.longContentID")
	return strings.ToLower(v)
}

// setContent records a content ID: the CID, and the long one whose low 32 bits equal it.
func (d *Descriptor) setContent(c CID, long string) error {
	if err := d.Set("CID", c.String()); err != nil {
		return err
	}
	return d.Set("ddb.longContentID", long)
}

// UUID is the identity of the disk; only base links record it as a rule.
func (d *Descriptor) UUID() (UUID, bool) {
	v, ok := d.Get("ddb.uuid")
	if !ok {
		return UUID{}, false
	}
	u, err := ParseUUID(v)
	return u, err == nil
}

// ParentHint is where this child looks for its parent. It is a hint: compare it, never follow it out of a directory.
func (d *Descriptor) ParentHint() string {
	v, _ := d.Get("parentFileNameHint")
	return v
}

// IsChild tells that the link has a parent.
func (d *Descriptor) IsChild() bool { return d.ParentCID() != NoParent }

// Capacity is the sum of the extents in bytes. The parser has checked that it does not overflow.
func (d *Descriptor) Capacity() int64 {
	var n int64
	for i := range d.lines {
		if d.lines[i].kind == lineExtent {
			n += d.lines[i].extent.Sectors
		}
	}
	return n * SectorSize
}

func (d *Descriptor) setGeometry() error {
	adapter, _ := d.Get("ddb.adapterType")
	c, h, s := geometry(d.Capacity()/SectorSize, adapter)
	for _, kv := range []struct {
		key string
		v   int64
	}{{"cylinders", c}, {"heads", h}, {"sectors", s}} {
		if err := d.Set("ddb.geometry."+kv.key, strconv.FormatInt(kv.v, 10)); err != nil {
			return err
		}
	}
	return nil
}

// dropChangeTracking removes the change tracking section, VMware's own way to say that the CTK file is stale
// (VMware KB 2064959): an incremental backup would otherwise miss what we write.
func (d *Descriptor) dropChangeTracking() {
	if d.find("changeTrackPath") < 0 {
		return
	}
	d.remove(func(l *line) bool {
		return l.kind == lineHeader && l.key == "changetrackpath" ||
			l.kind == lineOther && strings.EqualFold(strings.TrimSpace(l.raw), "# Change Tracking File")
	})
	_ = d.Set("version", "1")
}

// Text is the descriptor as it is stored.
func (d *Descriptor) Text() []byte {
	var b strings.Builder
	for i := range d.lines {
		b.WriteString(d.lines[i].raw)
		b.WriteString(d.lines[i].eol)
	}
	return []byte(b.String())
}

// Clone is an independent copy.
func (d *Descriptor) Clone() *Descriptor {
	return &Descriptor{lines: append([]line(nil), d.lines...)}
}

func checkValue(what, v string) error {
	if i := strings.IndexAny(v, "\"\r\n\x00"); i >= 0 {
		return fault.New(fault.Invalid, "leave out quotes, line ends and NUL bytes", "%s %q contains %q, which a descriptor cannot hold", what, clip(v), v[i])
	}
	if len(v) > maxExtentName {
		return fault.New(fault.Invalid, "", "%s is %d bytes long, more than %d", what, len(v), maxExtentName)
	}
	return nil
}
