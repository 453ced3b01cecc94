package sim

import (
	"fmt"
	"runtime"
	"strings"
)

// Kind is what an operation did.
type Kind string

// The kinds of operations that can change what survives.
const (
	OpWrite    Kind = "write"
	OpTruncate Kind = "truncate"
	OpAllocate Kind = "allocate"
	OpPunch    Kind = "punch"
	OpZero     Kind = "zero"
	OpDatasync Kind = "datasync"
	OpCreate   Kind = "create"
	OpMkdir    Kind = "mkdir"
	OpLink     Kind = "link"
	OpRename   Kind = "rename"
	OpRemove   Kind = "remove"
	OpSync     Kind = "sync"
	opEvent    Kind = "event"
)

// Op is one recorded operation.
type Op struct {
	Seq  int    // counts from 0
	Kind Kind   // what
	Path string // on what, for people
	Site string // package directory, file and line of the first caller outside internal/fsx

	inode  uint64 // file of a data operation, directory of an entry operation
	target uint64 // inode that the entry names
	name   string
	from   string // rename: the old name
	off, n int64
	data   []byte
	failed bool // a sync that reported failure: what it should have stored is never surely stored
	event  any
	mark   bool
}

func (o *Op) String() string {
	switch o.Kind {
	case OpWrite, OpAllocate, OpPunch, OpZero:
		return fmt.Sprintf("#%d %s %s [%d,+%d) at %s", o.Seq, o.Kind, o.Path, o.off, o.n, o.Site)
	case OpTruncate:
		return fmt.Sprintf("#%d truncate %s to %d at %s", o.Seq, o.Path, o.off, o.Site)
	case OpRename:
		return fmt.Sprintf("#%d rename %s from %s at %s", o.Seq, o.Path, o.from, o.Site)
	case opEvent:
		return fmt.Sprintf("#%d event %v", o.Seq, o.event)
	}
	return fmt.Sprintf("#%d %s %s at %s", o.Seq, o.Kind, o.Path, o.Site)
}

// apply makes the operation's effect on a tree in which any of the operations before it may be missing.
func (o *Op) apply(t *tree) {
	n := t.inodes[o.inode]
	if n == nil {
		return
	}
	switch o.Kind {
	case OpWrite:
		n.writeAt(o.data, o.off)
	case OpTruncate:
		n.truncate(o.off)
	case OpAllocate:
		n.allocate(o.off, o.n)
	case OpPunch:
		n.clearRange(o.off, o.n, false)
	case OpZero:
		n.clearRange(o.off, o.n, true)
	case OpCreate, OpMkdir, OpLink:
		n.own()
		n.entries[o.name] = o.target
	case OpRemove:
		n.own()
		delete(n.entries, o.name)
	case OpRename:
		n.own()
		if n.entries[o.from] == o.target {
			delete(n.entries, o.from)
		}
		n.entries[o.name] = o.target
	}
}

const (
	modulePrefix = "github.com/vmdk-csi/vmdk-csi/"
	seamPrefix   = modulePrefix + "internal/fsx"
)

// callSite is the first caller outside the seam; the seam's own tests count as outside.
func callSite() string {
	var pcs [24]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs[:])])
	for {
		f, more := frames.Next()
		if !strings.HasPrefix(f.Function, seamPrefix) || strings.HasSuffix(f.File, "_test.go") {
			dir, file := "", f.File
			if i := strings.LastIndexByte(file, '/'); i >= 0 {
				file = file[i+1:]
			}
			if pkg, ok := strings.CutPrefix(f.Function, modulePrefix); ok {
				slash := strings.LastIndexByte(pkg, '/')
				dot := strings.IndexByte(pkg[slash+1:], '.')
				dir = strings.TrimSuffix(pkg[:slash+1+dot], "_test") + "/"
			}
			return fmt.Sprintf("%s%s:%d", dir, file, f.Line)
		}
		if !more {
			return "unknown"
		}
	}
}
