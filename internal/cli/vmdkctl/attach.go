package vmdkctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func (a *app) attachCommand() *cobra.Command {
	var readOnly, dryRun bool
	c := &cobra.Command{
		Use:   "attach DISK",
		Short: "Make a disk a block device of this machine",
		Long: `Make a disk the block device /dev/loopN, and print that name. A keeper process in the background supervises the worker that
serves the disk: a worker that dies is replaced and nothing that was acknowledged is lost. The device stays until
vmdkctl detach, or until the machine stops. Needs root.

A volume of a datastore is claimed for this machine: no other host can attach it meanwhile.`,
		Example: "  dev=$(vmdkctl attach disk.vmdk)\n  mkfs.ext4 $dev && mount $dev /mnt\n  umount /mnt && vmdkctl detach $dev",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error { return a.attach(c.Context(), args[0], readOnly, dryRun) },
	}
	c.Flags().BoolVarP(&readOnly, "read-only", "r", false, "attach it read-only; several machines may do so at once")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "find the disk and what would keep it from being attached, attach nothing")
	return c
}

func (a *app) attach(ctx context.Context, arg string, readOnly, dryRun bool) error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Denied, "Run it as root.", "only root can make block devices")
	}
	req, err := a.keepRequest(arg, readOnly)
	if err != nil {
		return err
	}
	if err := notAttached(ctx, req); err != nil {
		return err
	}
	if dryRun {
		_, err := fmt.Fprintf(a.out, "Would attach %s\n", cli.Printable(arg))
		return err
	}
	att, err := startKeeper(ctx, req)
	if err != nil {
		return err
	}
	return a.format.Write(a.out, att, func(w io.Writer) error {
		_, err := fmt.Fprintln(w, att.Device)
		return err
	})
}

// KeepRequest finds the disk, and refuses what shows before anything is opened.
func (a *app) keepRequest(arg string, readOnly bool) (keepRequest, error) {
	f, err := a.find(arg)
	if err != nil {
		return keepRequest{}, err
	}
	defer f.Close()
	path := realPath(f.Path)
	r := keepRequest{Path: path, Names: f.Names, ReadOnly: readOnly}
	v := f.Volume
	if v == nil {
		r.ID = keepID(filepath.Join(path, f.Head()))
		return r, nil
	}
	if len(f.Names) < len(v.Manifest.Links) {
		return keepRequest{}, fault.New(fault.Invalid, "Attach the volume, or convert this link to a disk of its own.",
			"%s is not the head of the disk %s", f.Head(), v.Record.Name)
	}
	r.ID, r.Volume, r.Name = v.Record.ID, v.Record.ID, v.Record.Name
	r.Datastore = filepath.Dir(filepath.Dir(path))
	return r, nil
}

// NotAttached finds a device that shows the disk already, ours or the node plugin's.
func notAttached(ctx context.Context, r keepRequest) error {
	if att, err := theRunDir().find(ctx, r.ID); err == nil && att.State != keeperDied {
		return fault.New(fault.InUse, "Use that device, or detach it first.", "%s is attached already: %s", att.Disk, att.Device)
	}
	devices, err := loop.FindByName(r.ID)
	if err != nil || len(devices) == 0 {
		return err
	}
	return fault.New(fault.InUse, "`vmdkctl detach "+devices[0].Path+"` if its keeper died; else detach it where it was attached.",
		"%s shows this disk", devices[0].Path)
}

// StartKeeper starts the process that outlives this one, and waits for its answer.
func startKeeper(ctx context.Context, r keepRequest) (attachment, error) {
	request, err := json.Marshal(r)
	if err != nil {
		return attachment{}, err
	}
	if err := os.MkdirAll(string(theRunDir()), 0o700); err != nil {
		return attachment{}, err
	}
	log, err := os.OpenFile(theRunDir().file(r.ID, ".log"), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return attachment{}, err
	}
	defer log.Close()
	answer, theirs, err := os.Pipe()
	if err != nil {
		return attachment{}, err
	}
	defer answer.Close()
	cmd := exec.Command("/proc/self/exe", "keep")
	cmd.Dir = "/" // so that no directory of the caller's stays busy
	cmd.Stdout, cmd.Stderr = theirs, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // the terminal's end is not the keeper's
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	_ = theirs.Close()
	if err != nil {
		return attachment{}, fault.Wrap(err, "start the keeper")
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Signal(syscall.SIGTERM) })
	defer stop()
	_, err = in.Write(request)
	err = errors.Join(err, in.Close())
	text, rerr := io.ReadAll(answer)
	if err = errors.Join(err, rerr); err != nil {
		return attachment{}, fault.Wrap(err, "wait for the keeper")
	}
	att, err := parseAnswer(bytes.TrimSpace(text))
	if err != nil {
		_ = cmd.Wait() // it has told why, and ends
		return attachment{}, err
	}
	return att, cmd.Process.Release()
}
