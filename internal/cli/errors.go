package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Exit codes of the module's programs. Check uses more of them than others do; docs/vmdkctl.md lists them.
const (
	ExitOK      = 0
	ExitFailed  = 1 // the command could not do its work
	ExitUsage   = 2 // the command line is wrong
	ExitDamaged = 3 // check found damage
	ExitWarned  = 4 // check found something to know about, no damage
	ExitInUse   = 5 // the disk is in use: attached, locked, or mounted
)

// Status is an error that has been told already, and an exit code.
type Status int

func (s Status) Error() string { return fmt.Sprintf("exit status %d", int(s)) }

// Usage marks an error of the command line.
type Usage struct{ Err error }

func (u Usage) Error() string { return u.Err.Error() }

// Unwrap gives the error.
func (u Usage) Unwrap() error { return u.Err }

// Report writes err for a person, "Error: …" and "Remedy: …", and returns the exit code.
func Report(w io.Writer, err error) int {
	var s Status
	var u Usage
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &s):
		return int(s)
	}
	f := fault.From(err)
	remedy := f.Remedy
	if remedy == "" {
		remedy = remedies[f.Kind]
	}
	fmt.Fprintf(w, "Error: %s\n", Printable(Message(f)))
	if remedy != "" {
		fmt.Fprintf(w, "Remedy: %s\n", Printable(Sentence(remedy)))
	}
	switch {
	case errors.As(err, &u):
		return ExitUsage
	case f.Kind == fault.InUse:
		return ExitInUse
	case f.Kind == fault.Damaged:
		return ExitDamaged
	}
	return ExitFailed
}

// Message is the text of f in one line without the remedy, which a fault that was joined or wrapped with %w carries too.
func Message(f *fault.Fault) string {
	s := f.Message
	if f.Remedy != "" {
		s = strings.ReplaceAll(s, " ("+f.Remedy+")", "")
	}
	return strings.ReplaceAll(s, "\n", "; ")
}

// Sentence begins s with a capital and ends it with a full stop.
func Sentence(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	s = string(unicode.ToUpper(r)) + s[n:]
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

// What to do about a failure that came from the kernel without a remedy of its own.
var remedies = map[fault.Kind]string{
	fault.NotFound: "Check the path; `ls` its directory.",
	fault.NoSpace:  "Free space on the file system or choose another one; `df -h` shows how much there is.",
	fault.Denied:   "Run the command as a user who may do this (root for attach and detach).",
	fault.ReadOnly: "Remount the file system read-write or choose another one.",
	fault.Exists:   "Choose another name or remove the file that has it.",
	fault.InUse:    "Detach the disk where it is in use, or look at it with info, chain and map, which take no lock.",
	fault.Damaged:  "Run `vmdkctl check` on the disk; restore it from a backup if it reports errors.",
	fault.Poisoned: "Detach the disk, look for I/O errors in the kernel log, and run `vmdkctl check` before using it again.",
}
