package vmdktest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	sector   = 512
	grain    = 128 // sectors; what every VMware product writes
	entries  = 512 // per grain table; the only number that all readers take
	reserved = 512 // bytes of an embedded descriptor that VirtualBox fills with its own keys
	rootCID  = "ffffffff"
	flat     = "FLAT"
	sparse   = "SPARSE"
	cowd     = "VMFSSPARSE"
	vmfs     = "VMFS"
	embedded = "monolithicSparse"
)

// linter collects what is wrong with one link.
type linter struct {
	dir, name string
	wrong     []string
}

// extent is an extent line.
type extent struct {
	access, kind, name string
	sectors, offset    int64
	hasOffset          bool
}

// Lint is what the strictest readers would object to in a link that is closed: the descriptor name in directory dir and its
// extents. Nil: nothing. Only types that VMware's hosted products and VirtualBox write themselves are judged, and "vmfs".
func Lint(dir, name string) []string {
	l := &linter{dir: dir, name: name}
	text, inside := l.text()
	if text == "" {
		return l.wrong
	}
	l.descriptor(text, inside)
	return l.wrong
}

func (l *linter) add(format string, args ...any) {
	l.wrong = append(l.wrong, l.name+": "+fmt.Sprintf(format, args...))
}

// text is the descriptor, and whether it lies in an extent.
func (l *linter) text() (string, bool) {
	b, err := os.ReadFile(filepath.Join(l.dir, l.name))
	if err != nil {
		l.add("%v", err)
		return "", false
	}
	if !bytes.HasPrefix(b, []byte("KDMV")) {
		if len(b) > 64<<10 {
			l.add("a descriptor of %d bytes", len(b))
			return "", false
		}
		return string(b), false
	}
	off, size := binary.LittleEndian.Uint64(b[28:])*sector, binary.LittleEndian.Uint64(b[36:])*sector
	if off != sector || off+size > uint64(len(b)) || size < 20*sector {
		l.add("embedded descriptor of %d bytes at %d, want 20 sectors at sector 1", size, off)
		return "", true
	}
	text, tail, _ := bytes.Cut(b[off:off+size], []byte{0})
	if len(bytes.Trim(tail, "\x00")) > 0 {
		l.add("bytes behind the embedded descriptor's end")
	}
	if len(tail) < reserved {
		l.add("only %d bytes are free in the embedded descriptor", len(tail))
	}
	return string(text), true
}

var (
	headerLine = regexp.MustCompile(`^([A-Za-z]+)=(?:"([^"]*)"|([0-9a-f]+))$`)
	extentLine = regexp.MustCompile(`^(RW|RDONLY|NOACCESS) ([1-9][0-9]*) (FLAT|SPARSE|VMFSSPARSE|VMFS|ZERO)(?: "([^"/\\]+)"(?: ([0-9]+))?)?$`)
	ddbLine    = regexp.MustCompile(`^(ddb\.[A-Za-z0-9_.]+) = "([^"]*)"$`)
	cid        = regexp.MustCompile(`^[0-9a-f]{8}$`)
	uuid       = regexp.MustCompile(`^60 00 C2 9[0-9a-f]( [0-9a-f]{2}){4}-[0-9a-f]{2}( [0-9a-f]{2}){7}$`)
)

// descriptor judges the text, line by line: first line, then header, extents and disk data base in this order.
func (l *linter) descriptor(text string, inside bool) {
	if strings.ContainsRune(text, '\r') || !strings.HasSuffix(text, "\n") {
		l.add("lines end in LF, and the last one does, too")
	}
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if lines[0] != "# Disk DescriptorFile" {
		l.add("first line %q", lines[0])
	}
	header, ddb := map[string]string{}, map[string]string{}
	var extents []extent
	section := 0 // 0 header, 1 extents, 2 disk data base
	for _, s := range lines[1:] {
		if s == "" || strings.HasPrefix(s, "#") {
			continue
		}
		at := 0
		switch h, x, d := headerLine.FindStringSubmatch(s), extentLine.FindStringSubmatch(s), ddbLine.FindStringSubmatch(s); {
		case d != nil:
			at = 2
			l.once(ddb, d[1], d[2])
		case h != nil:
			l.once(header, h[1], h[2]+h[3])
		case x != nil:
			at = 1
			e := extent{access: x[1], kind: x[3], name: x[4], hasOffset: x[5] != ""}
			e.sectors, _ = strconv.ParseInt(x[2], 10, 64) // the expression has checked it
			e.offset, _ = strconv.ParseInt("0"+x[5], 10, 64)
			extents = append(extents, e)
		default:
			l.add("line %q", s)
			continue
		}
		if at < section {
			l.add("%q stands behind a later section", s)
		}
		section = at
	}
	l.header(header, ddb)
	l.extents(header["createType"], extents, inside)
}

func (l *linter) once(m map[string]string, key, value string) {
	if _, twice := m[key]; twice {
		l.add("%s is there twice", key)
	}
	m[key] = value
}

func (l *linter) header(header, ddb map[string]string) {
	if header["version"] != "1" {
		l.add("version %q", header["version"])
	}
	child := header["parentCID"] != rootCID
	for _, k := range []string{"CID", "parentCID"} {
		if !cid.MatchString(header[k]) {
			l.add("%s %q is not eight hex digits", k, header[k])
		}
	}
	if header["CID"] == rootCID {
		l.add("CID is that of no disk")
	}
	if hint := header["parentFileNameHint"]; child != (hint != "") || strings.ContainsAny(hint, "/\\") {
		l.add("parentCID %s and parentFileNameHint %q", header["parentCID"], hint)
	}
	if long := ddb["ddb.longContentID"]; len(long) != 32 || !strings.HasSuffix(long, header["CID"]) {
		l.add("longContentID %q does not end in CID %s", long, header["CID"])
	}
	if child {
		return // geometry, adapter and UUID are the base's
	}
	for _, k := range []string{"cylinders", "heads", "sectors"} {
		if n, err := strconv.Atoi(ddb["ddb.geometry."+k]); err != nil || n < 1 || n > 65535 {
			l.add("ddb.geometry.%s %q", k, ddb["ddb.geometry."+k])
		}
	}
	if a := ddb["ddb.adapterType"]; !slices.Contains([]string{"ide", "buslogic", "lsilogic", "legacyESX"}, a) {
		l.add("ddb.adapterType %q", a)
	}
	if v, err := strconv.Atoi(ddb["ddb.virtualHWVersion"]); err != nil || v < 3 || v > 21 {
		l.add("ddb.virtualHWVersion %q", ddb["ddb.virtualHWVersion"])
	}
	if u := ddb["ddb.uuid"]; !uuid.MatchString(u) {
		l.add("ddb.uuid %q", u)
	}
}

// kinds are what the extents of a createType must be, and how many there may be (0: any number).
var kinds = map[string]struct {
	kind string
	most int
}{
	"monolithicSparse": {sparse, 1}, "monolithicFlat": {flat, 1}, "twoGbMaxExtentSparse": {sparse, 0}, "twoGbMaxExtentFlat": {flat, 0}, "vmfs": {vmfs, 1},
	"vmfsSparse": {cowd, 1},
}

func (l *linter) extents(createType string, all []extent, inside bool) {
	k, known := kinds[createType]
	if !known {
		l.add("createType %q", createType)
		return
	}
	if len(all) == 0 || k.most > 0 && len(all) > k.most {
		l.add("%d extents in a %s", len(all), createType)
	}
	if inside != (createType == embedded) {
		l.add("the descriptor of a %s is in the wrong place", createType)
	}
	seen := map[string]bool{}
	for i, e := range all {
		if e.access != "RW" || e.kind != k.kind || e.name == "" {
			l.add("extent %d is %s %s %q in a %s", i, e.access, e.kind, e.name, createType)
			continue
		}
		if e.hasOffset != (e.kind == flat) {
			l.add("extent %d: FLAT has an offset, no other type", i)
		}
		if seen[e.name] || e.name == l.name != inside {
			l.add("extent %d is in file %q", i, e.name)
		}
		seen[e.name] = true
		f, err := os.Open(filepath.Join(l.dir, e.name))
		if err != nil {
			l.add("extent %d: %v", i, err)
			continue
		}
		if e.kind == sparse {
			l.sparse(f, e)
		} else if e.kind == cowd {
			l.cowd(f, e)
		} else if st, err := f.Stat(); err != nil || st.Size() != (e.offset+e.sectors)*sector {
			l.add("extent %d: %d sectors from %d in a file of %d bytes (%v)", i, e.sectors, e.offset, st.Size(), err)
		}
		_ = f.Close()
	}
}
