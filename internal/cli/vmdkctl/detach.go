package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func (a *app) detachCommand() *cobra.Command {
	var dryRun bool
	c := &cobra.Command{
		Use:   "detach DEVICE|DISK",
		Short: "Take a block device of vmdkctl attach away",
		Long: `Take the device away and close the disk cleanly. Refuses while it is mounted or open. A device whose keeper died is taken
away as well; its disk is checked when it is attached next.`,
		Example: "  vmdkctl detach /dev/loop0\n  vmdkctl detach disk.vmdk",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completeAttached,
		RunE: func(c *cobra.Command, args []string) error { return a.detach(c.Context(), args[0], dryRun) },
	}
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what keeps the device from being detached, detach nothing")
	return c
}

func (a *app) completeAttached(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	all, err := theRunDir().all(c.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	var out []string
	for _, x := range all {
		out = append(out, x.Device+"\t"+x.Disk)
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

func (a *app) detach(ctx context.Context, what string, dryRun bool) error {
	if os.Geteuid() != 0 {
		return fault.New(fault.Denied, "Run it as root.", "only root can take block devices away")
	}
	att, err := a.findAttached(ctx, what)
	if err != nil {
		return err
	}
	if dryRun {
		if err := deviceClaimed(att.Device); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.out, "Would detach %s (%s)\n", att.Device, cli.Printable(att.Disk))
		return err
	}
	dir := theRunDir()
	if att.State == keeperDied {
		err = dir.bury(ctx, att)
	} else {
		err = dir.askDetach(ctx, att)
	}
	if err != nil {
		return err
	}
	return a.format.Write(a.out, att, func(w io.Writer) error {
		lost := ""
		if att.State == keeperDied {
			lost = "; its keeper had died, and what was not flushed then is lost"
		}
		_, err := fmt.Fprintf(w, "Detached %s (%s)%s\n", att.Device, cli.Printable(att.Disk), lost)
		return err
	})
}

// FindAttached finds it by device, path, or with --datastore by the volume's id or name.
func (a *app) findAttached(ctx context.Context, what string) (attachment, error) {
	att, err := theRunDir().find(ctx, what)
	if err == nil || a.datastore == "" || !errors.Is(err, fault.NotFound) {
		return att, err
	}
	f, err := a.find(what)
	if err != nil {
		return attachment{}, err
	}
	defer f.Close()
	return theRunDir().find(ctx, f.Volume.Record.ID)
}

// AskDetach has the keeper detach and waits for its end: then its descriptors and locks are closed for certain.
func (d runDir) askDetach(ctx context.Context, att attachment) error {
	fd, err := unix.PidfdOpen(att.KeeperPID, 0) // it has just answered, so the number is its own
	if err != nil {
		return fault.Wrap(os.NewSyscallError("pidfd_open", err), "the keeper of %s", att.Disk)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	_, derr := d.ask(ctx, att.ID, opDetach)
	if errors.Is(derr, fault.InUse) {
		return derr
	}
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	if err := sys.PidfdWait(ctx, pidfd); err != nil {
		err = fault.New(fault.Timeout, "Its log is "+d.file(att.ID, ".log")+".", "the keeper of %s does not end: %w", att.Disk, err)
		return errors.Join(derr, err)
	}
	return derr
}

// Bury takes away what a dead keeper left: the device that answers with errors now, and the state.
func (d runDir) bury(ctx context.Context, att attachment) error {
	lock, err := d.claimDead(ctx, att.ID)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := clearDevices(att.ID); err != nil {
		return err
	}
	if err := releaseDead(ctx, att, slog.New(slog.DiscardHandler)); err != nil {
		return err
	}
	d.forget(att.ID)
	return nil
}

// ClaimDead is claim for a disk whose keeper does not answer: one that was just killed still has its files while it ends.
func (d runDir) claimDead(ctx context.Context, id string) (*os.File, error) {
	ctx, cancel := context.WithTimeout(ctx, releaseTime)
	defer cancel()
	for {
		lock, err := d.claim(id)
		if !errors.Is(err, fault.InUse) {
			return lock, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// ClearDevices takes every block device over the session's file away, and waits until it is gone. None is success.
// Kinds: InUse (the device is as it was).
func clearDevices(id string) error {
	devices, err := loop.FindByName(id)
	if err != nil {
		return err
	}
	for _, x := range devices {
		if err := clearDevice(x); err != nil {
			return err
		}
	}
	return nil
}

func clearDevice(x loop.Attached) error {
	ctx, cancel := context.WithTimeout(context.Background(), releaseTime)
	defer cancel()
	t := time.NewTicker(20 * time.Millisecond)
	defer t.Stop()
	for patience := time.Now().Add(probeTime); ; <-t.C {
		err := tryClear(x)
		// udev's probes open a device for a moment whenever somebody closes it.
		if errors.Is(err, fault.InUse) && time.Now().Before(patience) {
			continue
		}
		if err != nil {
			return err
		}
		return loop.WaitReleased(ctx, x.Number, x.Backing)
	}
}

func tryClear(x loop.Attached) error {
	if err := deviceClaimed(x.Path); err != nil {
		return err
	}
	dev, err := loop.Open(x.Path, x.ReadOnly)
	if errors.Is(err, fault.Precondition) {
		return nil // gone meanwhile
	}
	if err != nil {
		return err
	}
	// What is in the device's page cache goes to the disk here; a dead keeper's device has nowhere to write it.
	err = dev.File.Sync()
	if errors.Is(err, unix.EIO) {
		err = nil
	}
	if err == nil {
		err = unbind(dev, x.ReadOnly)
	}
	return errors.Join(err, dev.Close())
}
