package vmdk

import (
	"bytes"
	"strconv"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// ParseDescriptor reads a descriptor. The text ends at the first NUL byte: qemu rewrites a stand-alone descriptor padded
// with NUL, and where the new text is shorter (its content IDs have 1 to 8 digits) bytes of the old one stay behind it
// (block/vmdk.c, vmdk_write_cid). Everything else is kept for a lossless rewrite. Errors are fault.Damaged and name the line.
func ParseDescriptor(text []byte) (*Descriptor, error) {
	text, _, _ = bytes.Cut(text, []byte{0})
	if len(text) > maxDescriptorBytes {
		return nil, damagedText(0, "it is %d bytes long, more than %d", len(text), maxDescriptorBytes)
	}
	d := &Descriptor{}
	seen := map[string]bool{}
	extents, sectors := 0, int64(0)
	for n, rest := 1, string(text); rest != ""; n++ {
		if n > maxDescriptorLines {
			return nil, damagedText(n, "there are more than %d lines", maxDescriptorLines)
		}
		var l line
		l, rest = cutLine(rest)
		if err := parseLine(&l, n); err != nil {
			return nil, err
		}
		switch l.kind {
		case lineExtent:
			extents++
			sectors += l.extent.Sectors
			if extents > maxExtents || sectors > 1<<55/SectorSize {
				return nil, damagedText(n, "there are more than %d extents, or they are larger than 2^55 bytes together", maxExtents)
			}
		case lineHeader:
			if seen[l.key] && (plainKeys[l.key] || l.key == "createtype") {
				return nil, damagedText(n, "%s occurs twice", l.key)
			}
			seen[l.key] = true
		}
		d.lines = append(d.lines, l)
	}
	if len(d.lines) == 0 || !strings.HasPrefix(strings.TrimSpace(d.lines[0].raw), "#") {
		return nil, damagedText(1, `it does not begin with "# Disk DescriptorFile"`)
	}
	for _, k := range []string{"version", "CID", "createType"} {
		if _, ok := d.Get(k); !ok {
			return nil, damagedText(0, "%s is missing", k)
		}
	}
	if extents == 0 {
		return nil, damagedText(0, "there is no extent line")
	}
	return d, nil
}

func damagedText(n int, format string, args ...any) error {
	f := fault.New(fault.Damaged, "restore the descriptor from a backup, or write a new one for the extents that are there", format, args...)
	if n > 0 {
		return fault.Wrap(f, "descriptor line %d", n)
	}
	return fault.Wrap(f, "descriptor")
}

// cutLine splits off the first line and remembers how it ended.
func cutLine(s string) (line, string) {
	i := strings.IndexByte(s, '\n')
	switch {
	case i < 0:
		return line{raw: s}, ""
	case i > 0 && s[i-1] == '\r':
		return line{raw: s[:i-1], eol: "\r\n"}, s[i+1:]
	}
	return line{raw: s[:i], eol: "\n"}, s[i+1:]
}

func parseLine(l *line, n int) error {
	s := strings.Trim(l.raw, " \t\r")
	if s == "" || s[0] == '#' {
		return nil
	}
	word, rest, _ := strings.Cut(strings.ReplaceAll(s, "\t", " "), " ")
	switch strings.ToUpper(word) {
	case "RW", "RDONLY", "NOACCESS":
		l.kind = lineExtent
		l.extent.Access = strings.ToUpper(word)
		return parseExtent(&l.extent, rest, n)
	}
	key, value, ok := strings.Cut(s, "=")
	if !ok {
		return damagedText(n, "%q is neither a comment, a key, nor an extent", clip(s))
	}
	l.key = strings.ToLower(strings.TrimRight(key, " \t"))
	l.kind = lineHeader
	if strings.HasPrefix(l.key, "ddb.") {
		l.kind = lineDDB
	}
	if l.key == "" || strings.ContainsAny(l.key, " \t\"") {
		return damagedText(n, "%q is not a key", clip(key))
	}
	value = strings.TrimLeft(value, " \t")
	if len(value) >= 2 && value[0] == '"' && value[len(value)-1] == '"' {
		value = value[1 : len(value)-1]
	}
	if strings.IndexByte(value, '"') >= 0 {
		return damagedText(n, "the value of %s has an unpaired quote", clip(l.key))
	}
	l.value = value
	if l.key == "cid" || l.key == "parentcid" {
		if _, err := parseCID(value); err != nil {
			return fault.Wrap(err, "descriptor line %d", n)
		}
	}
	return nil
}

// parseExtent reads: size type ["name" [offset [attributes]]].
func parseExtent(e *ExtentLine, s string, n int) error {
	f := strings.Fields(s)
	if len(f) < 2 {
		return damagedText(n, "an extent needs a size and a type")
	}
	size, err := parseSectors(f[0])
	if err != nil {
		return damagedText(n, "extent size: %v", err)
	}
	e.Sectors, e.Type = size, strings.ToUpper(f[1])
	rest := ""
	if i := strings.IndexByte(s, '"'); i >= 0 {
		j := strings.IndexByte(s[i+1:], '"')
		if j < 0 {
			return damagedText(n, "the extent's file name has no closing quote")
		}
		e.Name, rest = s[i+1:i+1+j], strings.TrimSpace(s[i+2+j:])
	} else if len(f) > 2 {
		return damagedText(n, "the extent's file name is not quoted")
	}
	if len(e.Name) > maxExtentName {
		return damagedText(n, "the extent's file name is %d bytes long", len(e.Name))
	}
	if rest != "" {
		off, attrs, _ := strings.Cut(rest, " ")
		if e.Offset, err = parseSectors(off); err != nil {
			return damagedText(n, "extent offset: %v", err)
		}
		e.attrs = strings.TrimSpace(attrs)
	}
	return nil
}

func parseSectors(s string) (int64, error) {
	v, err := strconv.ParseUint(s, 10, 64)
	if err != nil || v > 1<<55/SectorSize {
		return 0, fault.New(fault.Damaged, "", "%q is not a number of sectors up to 2^46", clip(s))
	}
	return int64(v), nil
}
