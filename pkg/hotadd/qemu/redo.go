package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// A read-only disk is three nodes: what the device uses, the redo log's file, and the disk itself.
const (
	redoSuffix = "-r"
	baseSuffix = "-b"
)

// addRedo opens the disk for reading and puts an empty redo log over it: the guest replays journals on a read-only
// disk, too. The log's name is gone as soon as QEMU has it open, so that the log is thrown away however the device or
// the machine ends.
func (b *Bus) addRedo(ctx context.Context, m *monitor, name string, f File) (err error) {
	if b.config.Scratch == "" {
		return fault.New(fault.Precondition, "Name a directory for redo logs in the configuration.", "a read-only disk needs a redo log")
	}
	log := filepath.Join(b.config.Scratch, name+".redo")
	file, err := os.OpenFile(log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fault.Wrap(err, "redo log")
	}
	defer func() {
		if e := os.Remove(log); !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}()
	if err := file.Close(); err != nil {
		return fault.Wrap(err, "redo log")
	}
	base, redo := name+baseSuffix, name+redoSuffix
	if _, err := m.call(ctx, "blockdev-add", map[string]any{"driver": "vmdk", "node-name": base, "read-only": true,
		"file": map[string]any{"driver": "file", "filename": f.Path}}); err != nil {
		return err
	}
	disk, _, err := findNode(ctx, m, base)
	if err != nil {
		return err
	}
	if _, err := m.call(ctx, "blockdev-add", map[string]any{"driver": "file", "node-name": redo, "filename": log}); err != nil {
		return err
	}
	if err := job(ctx, m, name, "blockdev-create", map[string]any{"job-id": name,
		"options": map[string]any{"driver": "qcow2", "file": redo, "size": disk.Image.Size}}); err != nil {
		return err
	}
	_, err = m.call(ctx, "blockdev-add", map[string]any{"driver": "qcow2", "node-name": name, "file": redo, "backing": base})
	return err
}

// node is a block node of QEMU's.
type node struct {
	Name  string `json:"node-name"`
	Image struct {
		File string `json:"filename"`
		Size int64  `json:"virtual-size"` // bytes
	} `json:"image"`
}

func findNode(ctx context.Context, m *monitor, name string) (n node, found bool, err error) {
	var nodes []node
	if err := get(ctx, m, "query-named-block-nodes", map[string]any{"flat": true}, &nodes); err != nil {
		return n, false, err
	}
	i := slices.IndexFunc(nodes, func(n node) bool { return n.Name == name })
	if i < 0 {
		return n, false, nil
	}
	return nodes[i], true, nil
}

// agrees says whether the disk is attached as f wants it.
func agrees(ctx context.Context, m *monitor, o hotadd.Occupied, f File) error {
	n, readOnly, err := findNode(ctx, m, nodeName(o.Disk.ID)+baseSuffix)
	if err == nil && !readOnly {
		n, _, err = findNode(ctx, m, nodeName(o.Disk.ID))
	}
	// QEMU writes json:{...} where a path alone does not say what is open.
	if err != nil || readOnly == f.ReadOnly && (n.Image.File == f.Path || strings.HasPrefix(n.Image.File, "json:")) {
		return err
	}
	return fault.New(fault.Precondition, "Detach the disk first.",
		"it is in slot %s already, with %s (read-only: %t)", o.Slot, n.Image.File, readOnly)
}

// job runs a command that is a job of QEMU's, to its end.
func job(ctx context.Context, m *monitor, id, command string, arguments any) error {
	w := m.watch(func(name string, data json.RawMessage) bool {
		var d struct{ ID, Status string }
		return name == "JOB_STATUS_CHANGE" && json.Unmarshal(data, &d) == nil && d.ID == id && d.Status == "concluded"
	})
	if _, err := m.call(ctx, command, arguments); err != nil {
		return err
	}
	if _, err := m.wait(ctx, w); err != nil {
		return err
	}
	var jobs []struct{ ID, Error string }
	if err := get(ctx, m, "query-jobs", nil, &jobs); err != nil {
		return err
	}
	if _, err := m.call(ctx, "job-dismiss", map[string]any{"id": id}); err != nil {
		return err
	}
	i := slices.IndexFunc(jobs, func(j struct{ ID, Error string }) bool { return j.ID == id })
	if i >= 0 && jobs[i].Error != "" {
		return &refusal{Class: "GenericError", Desc: jobs[i].Error}
	}
	return nil
}
