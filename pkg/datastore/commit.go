package datastore

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"io/fs"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

const tempPrefix = ".tmp-"

// publish makes name in d hold data unless the name is taken (then fs.ErrExist):
//
//  1. write a temporary file and make it durable        a crash leaves garbage that the next sweep removes
//  2. link(2) it to its name: the commit point           EEXIST: somebody else won
//  3. unlink the temporary name                          a crash leaves garbage
//  4. make the directory durable                         a crash before may undo 2: the caller has no answer yet
//
// The link's error proves nothing by itself: an NFS client that retransmits gets EEXIST for its own success (link(2),
// BUGS). So after any error the inodes are compared. An outcome that stays unknown is fault.Poisoned.
func publish(d fsx.Dir, name string, data []byte) error {
	temp := tempPrefix + randomHex(8)
	mine, err := writeTemp(d, temp, data)
	if err != nil {
		return err
	}
	linkErr := d.LinkFrom(d, temp, name)
	if linkErr != nil {
		linkErr = judge(d, mine, name, linkErr)
	}
	// A temporary name that cannot be removed is garbage, and says nothing about the commit.
	_ = d.Remove(temp)
	if linkErr != nil {
		return linkErr
	}
	if err := d.Sync(); err != nil {
		return unknown(name, err)
	}
	return nil
}

// writeTemp makes a durable file, or none. It is locked while it lives, so that a sweep can tell it from garbage.
func writeTemp(d fsx.Dir, temp string, data []byte) (info fsx.Info, err error) {
	f, err := d.Open(temp, fsx.ReadWrite|fsx.Create|fsx.Exclusive)
	if err != nil {
		return info, err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = d.Remove(temp)
		}
	}()
	// Where locks do not work a sweep may remove the file too early; the link then fails and the caller tries again.
	_ = f.Lock(fsx.LockWrite)
	if _, err := f.WriteAt(data, 0); err != nil {
		return info, err
	}
	if err := f.Datasync(); err != nil {
		return info, err
	}
	return f.Stat()
}

// judge finds out what a link of the file mine to name, which returned linkErr, has done: nil if the name is ours.
func judge(d fsx.Dir, mine fsx.Info, name string, linkErr error) error {
	there, err := d.Stat(name)
	switch {
	case err == nil && there.Inode == mine.Inode && there.Device == mine.Device:
		return nil
	case err == nil:
		return fault.New(fault.Exists, "", "%s: %w", name, fs.ErrExist)
	case !errors.Is(err, fs.ErrNotExist):
		return unknown(name, errors.Join(linkErr, err))
	}
	// The name is not there. Only a refusal is certain to stay without effect; a request that got lost may arrive yet.
	switch fault.KindOf(linkErr) {
	case fault.NotFound:
		// Whoever owns the directory now collected the temporary file: its commit came first.
		return fault.New(fault.InProgress, "Try again.", "%s: another host works on the same files: %w", name, linkErr)
	case fault.NoSpace, fault.ReadOnly, fault.Denied, fault.Unsupported, fault.Exhausted, fault.Invalid:
		return linkErr
	}
	return unknown(name, linkErr)
}

func unknown(name string, err error) error {
	return fault.New(fault.Poisoned, "Try again: the next attempt reads what happened. If it persists, check the datastore's file system.",
		"whether %s was committed is unknown: %w", name, err)
}

// sweepTemps removes temporary files that nobody writes any more.
func sweepTemps(d fsx.Dir) error {
	names, err := d.List()
	if err != nil {
		return err
	}
	for _, n := range names {
		if !strings.HasPrefix(n, tempPrefix) || alive(d, n) {
			continue
		}
		if err := removeFile(d, n); err != nil {
			return err
		}
	}
	return nil
}

func alive(d fsx.Dir, name string) bool {
	f, err := d.Open(name, fsx.ReadWrite)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist) && fault.KindOf(err) != fault.Invalid
	}
	defer f.Close()
	return errors.Is(f.Lock(fsx.LockWrite), fault.InUse)
}

// removeFile is Remove where a missing name is success.
func removeFile(d fsx.Dir, name string) error {
	if err := d.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails (crypto/rand)
	return hex.EncodeToString(b)
}
