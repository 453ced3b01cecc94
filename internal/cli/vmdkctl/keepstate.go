package vmdkctl

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// RunDir is where keepers of this machine leave what others need to find them; VMDKCTL_RUN_DIR replaces it.
//
//	<id>.json   the attachment, as it was made
//	<id>.sock   the keeper answers here
//	<id>.lock   flock'ed by the keeper for as long as it lives
//	<id>.log    what the keeper and its workers had to say
type runDir string

func theRunDir() runDir {
	if d := os.Getenv("VMDKCTL_RUN_DIR"); d != "" {
		return runDir(d)
	}
	return "/run/vmdkctl"
}

func (d runDir) file(id, suffix string) string { return filepath.Join(string(d), id+suffix) }

// Attachment is a disk that is a device, as list shows it.
type attachment struct {
	ID        string    `json:"id"`
	Device    string    `json:"device"`
	Disk      string    `json:"disk"`             // path of the head's descriptor, or the volume's name
	Volume    string    `json:"volume,omitempty"` // id on the datastore
	Datastore string    `json:"datastore,omitempty"`
	Size      int64     `json:"size"` // bytes
	ReadOnly  bool      `json:"readOnly"`
	Since     time.Time `json:"since"`
	KeeperPID int       `json:"keeperPID"`
	State     string    `json:"state"` // what the keeper says now; "keeper died" if it says nothing
	WorkerPID int       `json:"workerPID,omitempty"`
	Restarts  int       `json:"restarts"`
}

const keeperDied = "keeper died"

// KeepID names an attachment of plain files: readable, unique per path, and short: a socket's path has 107 bytes (unix(7)).
func keepID(path string) string {
	sum := sha256.Sum256([]byte(path))
	base := strings.Map(func(r rune) rune {
		if r > ' ' && r < 0x7f && r != '/' {
			return r
		}
		return '_'
	}, filepath.Base(path))
	return base[:min(len(base), 40)] + "-" + hex.EncodeToString(sum[:6])
}

// Save writes the state file whole or not at all.
func (d runDir) save(a attachment) error {
	text, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	temp := d.file(a.ID, ".json.new")
	if err := os.WriteFile(temp, append(text, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(temp, d.file(a.ID, ".json"))
}

// Forget removes what finds an attachment; its log stays for whoever asks why it ended.
func (d runDir) forget(id string) {
	for _, s := range []string{".json", ".sock", ".lock"} {
		_ = os.Remove(d.file(id, s))
	}
}

// Claim makes this process the keeper of id; the lock lives as long as the file is open. Kinds: InUse.
func (d runDir) claim(id string) (*os.File, error) {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	for {
		f, err := os.OpenFile(d.file(id, ".lock"), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = fault.New(fault.InUse, "`vmdkctl list` shows where; detach it there first.", "the disk is attached on this machine, or is just being attached")
			}
			return nil, err
		}
		// The former keeper removes the file when it ends: a lock on a removed file excludes nobody.
		mine, err := f.Stat()
		if err == nil {
			var there os.FileInfo
			if there, err = os.Stat(d.file(id, ".lock")); err == nil && os.SameFile(mine, there) {
				return f, nil
			}
		}
		_ = f.Close()
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
}

// All are the attachments in order of id, with what their keepers say now.
func (d runDir) all(ctx context.Context) ([]attachment, error) {
	names, err := filepath.Glob(filepath.Join(string(d), "*.json"))
	if err != nil {
		return nil, err
	}
	out := []attachment{}
	for _, n := range names {
		text, err := os.ReadFile(n)
		if errors.Is(err, fs.ErrNotExist) {
			continue // detached meanwhile
		}
		if err != nil {
			return nil, err
		}
		var a attachment
		if err := json.Unmarshal(text, &a); err != nil {
			return nil, fault.New(fault.Damaged, "Remove it; `losetup -l` shows the devices that are left.", "%s: %w", n, err)
		}
		if now, err := d.ask(ctx, a.ID, opStatus); err == nil {
			a = now
		} else {
			a.State, a.WorkerPID = keeperDied, 0
		}
		out = append(out, a)
	}
	return out, nil
}

// Find finds an attachment by its device, disk, volume or id. Kinds: NotFound.
func (d runDir) find(ctx context.Context, what string) (attachment, error) {
	all, err := d.all(ctx)
	if err != nil {
		return attachment{}, err
	}
	path := realPath(what)
	for _, a := range all {
		for _, name := range []string{a.ID, a.Device, a.Disk, a.Volume} {
			if name != "" && (name == what || name == path) {
				return a, nil
			}
		}
	}
	return attachment{}, fault.New(fault.NotFound, "`vmdkctl list` shows what is attached.", "%s is not attached by vmdkctl", what)
}

// RealPath is what a path stands for, or the path itself.
func realPath(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p
	}
	if p, err := filepath.Abs(path); err == nil {
		path = p
	}
	return path
}
