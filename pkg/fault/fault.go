package fault

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// Kind is what a program can decide on. It is itself an error, so that errors.Is(err, fault.NotFound) works.
type Kind string

// The kinds. Their text is part of the wire protocol and of object conditions: it never changes.
const (
	Invalid      Kind = "Invalid"      // an argument is wrong, whatever the state of the system
	OutOfRange   Kind = "OutOfRange"   // a size or offset outside the allowed range, which the message names
	NotFound     Kind = "NotFound"     // the disk, datastore, file or node does not exist
	Exists       Kind = "Exists"       // the name is taken by an object with another specification
	InProgress   Kind = "InProgress"   // another operation on this object runs; try again later
	InUse        Kind = "InUse"        // attached, claimed or locked by somebody else
	Precondition Kind = "Precondition" // the object's state does not allow the operation
	NoSpace      Kind = "NoSpace"      // the datastore is full (ENOSPC, EDQUOT)
	Exhausted    Kind = "Exhausted"    // another limit is reached: slots, depth, memory
	ReadOnly     Kind = "ReadOnly"     // the file system or disk cannot be written
	Damaged      Kind = "Damaged"      // a file's content contradicts its format or its manifest
	Unsupported  Kind = "Unsupported"  // valid, but not something this build, kernel or format can do
	Poisoned     Kind = "Poisoned"     // an earlier sync failed: nothing about this disk is certain until reopened
	Unavailable  Kind = "Unavailable"  // a process or host cannot be reached now; try again
	Timeout      Kind = "Timeout"      // the deadline passed; the operation may still finish
	Denied       Kind = "Denied"       // the caller may not do this (permissions, peer uid)
	Fenced       Kind = "Fenced"       // this host's right to the disk was taken away: its late writes are refused
	Internal     Kind = "Internal"     // everything else
)

func (k Kind) Error() string { return string(k) }

// Fault is a failure with its kind, its text and its remedy.
type Fault struct {
	Kind    Kind   `json:"kind"`
	Message string `json:"message"`
	// Remedy is what a person does next, a full sentence; may be empty.
	Remedy string `json:"remedy,omitempty"`
	cause  error
}

// New makes a Fault. format may use %w; remedy may be empty.
func New(k Kind, remedy, format string, args ...any) *Fault {
	err := fmt.Errorf(format, args...)
	return &Fault{Kind: k, Message: err.Error(), Remedy: remedy, cause: err}
}

// Wrap gives err a context "what: err" and keeps its kind; nil stays nil. An error without a kind gets the kind that
// KindOf finds for it.
func Wrap(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	f := &Fault{Kind: KindOf(err), Message: fmt.Sprintf(format, args...) + ": " + text(err), cause: err}
	var in *Fault
	if errors.As(err, &in) {
		f.Remedy = in.Remedy
	}
	return f
}

func text(err error) string {
	var f *Fault
	if errors.As(err, &f) && f == err {
		return f.Message
	}
	return err.Error()
}

func (f *Fault) Error() string {
	if f.Remedy == "" {
		return f.Message
	}
	return f.Message + " (" + f.Remedy + ")"
}

// Unwrap gives errors.Is the kind and the cause.
func (f *Fault) Unwrap() []error {
	if f.cause == nil {
		return []error{f.Kind}
	}
	return []error{f.Kind, f.cause}
}

// KindOf is the kind of err: the outermost Fault's, else what a well-known error of the standard library or the
// kernel stands for, else Internal. KindOf(nil) is "".
func KindOf(err error) Kind {
	var f *Fault
	var k Kind
	switch {
	case err == nil:
		return ""
	case errors.As(err, &f):
		return f.Kind
	case errors.As(err, &k):
		return k
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.Canceled):
		return Timeout
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return NoSpace
	case errors.Is(err, syscall.EROFS):
		return ReadOnly
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrExist):
		return Exists
	case errors.Is(err, fs.ErrPermission):
		return Denied
	case errors.Is(err, syscall.EBUSY):
		return InUse
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
		return Unsupported
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Unavailable
	}
	return Internal
}

// From makes a Fault of any error, for the wire. From(nil) is nil.
func From(err error) *Fault {
	if err == nil {
		return nil
	}
	var f *Fault
	if errors.As(err, &f) {
		return &Fault{Kind: f.Kind, Message: text(err), Remedy: f.Remedy, cause: err}
	}
	return &Fault{Kind: KindOf(err), Message: err.Error(), cause: err}
}

// MarshalJSON writes kind, message and remedy; the cause stays in this process.
func (f *Fault) MarshalJSON() ([]byte, error) {
	type plain Fault
	return json.Marshal((*plain)(f))
}
