package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

// LunExported is export's answer.
type lunExported struct {
	From  string `json:"from"`
	To    string `json:"to"`
	Files int    `json:"files"`
	Bytes int64  `json:"bytes"` // of the files, holes included
}

func (a *app) lunExportCommand(l *lunFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "export LUN DISK DIRECTORY",
		Short: "Copy a disk's files out of the store on a LUN",
		Long: `Copy the files of a disk, or any directory or file of the store, into a new directory; holes stay holes. What comes out are plain
VMDK files. DISK is a path as ls shows it, or the id or the name of a volume; "/" is everything.

The LUN is locked against an owner on this machine. If somebody elsewhere changes the store meanwhile, what was copied is removed and
the command fails: it can then be run again, or on the machine that owns the LUN.`,
		Example: "  vmdkctl lun export /dev/sdb pvc-4711 ./rescued\n  qemu-img info ./rescued/disk.vmdk",
		Args:    cobra.ExactArgs(3),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := a.lunExport(c.Context(), l, args[0], args[1], args[2])
			if err != nil {
				return err
			}
			return a.format.Write(a.out, r, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "%s: %d files, %s, copied to %s\n", cli.Printable(r.From), r.Files, cli.FormatSize(r.Bytes), cli.Printable(r.To))
				return err
			})
		},
	}
}

// lunExport makes the directory and removes it, with what it put there, if anything fails.
func (a *app) lunExport(ctx context.Context, l *lunFlags, name, disk, to string) (r lunExported, err error) {
	lun, s, err := l.openStore(ctx, name)
	if err != nil {
		return r, err
	}
	defer lun.Close()
	if err := lun.Lock(fsx.LockRead); err != nil {
		return r, fault.New(fault.InUse, "Stop the process that owns the LUN, or export a disk while nothing has it open.", "%s: %w", name, err)
	}
	dir, file, err := findInStore(s, disk)
	if err != nil {
		return r, err
	}
	if err := os.Mkdir(to, 0o750); err != nil {
		return r, fault.Wrap(err, "make the directory for the copy")
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(to))
		}
	}()
	dst, err := fsx.OpenRoot(to)
	if err != nil {
		return r, err
	}
	defer dst.Close()
	x := exporter{ctx: ctx, progress: cli.NewProgress(a.err, "export", 0)}
	defer x.progress.Done()
	if file != "" {
		err = x.file(dir, dst, file)
	} else {
		err = x.dir(dir, dst)
	}
	if err == nil {
		err = x.unchanged(lun, s)
	}
	return lunExported{From: disk, To: to, Files: x.files, Bytes: x.bytes}, err
}

// findInStore is a directory, or a file in one.
func findInStore(s *store.Store, disk string) (d fsx.Dir, file string, err error) {
	if d, err = inStore(s, disk); err == nil {
		return d, "", nil
	}
	parent, base := path.Split(path.Clean("/" + disk))
	if d, err := inStore(s, parent); err == nil {
		if i, err := d.Stat(base); err == nil && i.Mode.IsRegular() {
			return d, base, nil
		}
	}
	for _, id := range []string{disk, host.DiskID(disk)} {
		if d, err := inStore(s, path.Join("volumes", filepath.Base(id))); err == nil {
			return d, "", nil
		}
	}
	return nil, "", fault.New(fault.NotFound, "`vmdkctl lun ls --recursive` shows what there is.", "no file, directory or volume %q is in the store", disk)
}

type exporter struct {
	ctx      context.Context
	progress *cli.Progress
	files    int
	bytes    int64
	total    int64
}

func (x *exporter) dir(from, to fsx.Dir) error {
	names, err := from.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		i, err := from.Stat(name)
		if err != nil {
			return err
		}
		if !i.Mode.IsDir() {
			if err := x.file(from, to, name); err != nil {
				return err
			}
			continue
		}
		sub, err := from.Sub(name)
		if err != nil {
			return err
		}
		if err := to.Mkdir(name); err != nil {
			return err
		}
		into, err := to.Sub(name)
		if err != nil {
			return err
		}
		if err := errors.Join(x.dir(sub, into), into.Close()); err != nil {
			return err
		}
	}
	return to.Sync()
}

// file copies one; two names of one file become two files.
func (x *exporter) file(from, to fsx.Dir, name string) (err error) {
	src, err := from.Open(name, fsx.ReadOnly)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := to.Open(name, fsx.ReadWrite|fsx.Create|fsx.Exclusive)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	i, err := src.Stat()
	if err != nil {
		return err
	}
	x.total += i.Size
	const step = 64 << 20
	for off := int64(0); off < i.Size; off += step {
		if err := x.ctx.Err(); err != nil {
			return err
		}
		n := min(step, i.Size-off)
		if err := dst.Clone(src, off, off, n); err != nil {
			return err
		}
		x.bytes += n
		x.progress.Set(x.bytes, x.total)
	}
	x.files++
	return dst.Datasync()
}

// unchanged tells whether what was read is one state of the store: an owner that committed may have used extents again.
func (x *exporter) unchanged(lun fsx.File, s *store.Store) error {
	now, err := store.Open(lun, store.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	if now.Info().Generation != s.Info().Generation {
		return fault.New(fault.InUse, "Run it again when the disks are not in use, or where the store's owner runs.",
			"the owner of the store changed it during the copy")
	}
	return nil
}
