package vmdkctl

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Copying is a new disk with the content of another.
type copying struct {
	size   string // "" for the source's
	mode   string
	shape  shape
	dryRun bool
}

var cloneModes = []string{string(host.CloneLinked), string(host.CloneFull)}

func (v *copying) flags(c *cobra.Command) {
	c.Flags().StringVar(&v.size, "size", "", "capacity of the new disk: 10G, 512M, ... (default: the source's)")
	c.Flags().StringVar(&v.mode, "mode", string(host.CloneLinked), "linked: share the source's links; full: copy everything")
	c.Flags().StringVar(&v.shape.diskType, "type", string(vmdk.MonolithicFlat), "createType of a full copy: "+list(diskTypes))
	c.Flags().StringVar(&v.shape.format, "format", string(vmdk.Thin), "how a full copy takes its space: "+list(diskFormats))
	c.Flags().BoolVar(&v.dryRun, "dry-run", false, "say what would be made, make nothing")
	must(c.RegisterFlagCompletionFunc("mode", fixed(cloneModes...)))
	must(c.RegisterFlagCompletionFunc("type", fixed(diskTypes...)))
	must(c.RegisterFlagCompletionFunc("format", fixed(diskFormats...)))
	must(c.RegisterFlagCompletionFunc("size", cobra.NoFileCompletions))
}

func (a *app) restoreCommand() *cobra.Command {
	var v copying
	c := &cobra.Command{
		Use:   "restore SNAPSHOT NEWDISK",
		Short: "Make a new disk with the content of a snapshot",
		Long: `Make a new volume of the datastore with the content that a snapshot keeps. A linked disk shares the links with the disk
that the snapshot is of, and takes no time and no space until it is written; it stays whole whatever happens to
that disk and to the snapshot. A full copy shares nothing.`,
		Example: "  vmdkctl restore --datastore /srv/disks monday database-of-monday\n" +
			"  vmdkctl restore --datastore /srv/disks monday copy --mode full --size 20G",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeSnapshot,
		RunE: func(c *cobra.Command, args []string) error {
			return a.restore(c.Context(), args[0], args[1], v)
		},
	}
	v.flags(c)
	return c
}

func (a *app) cloneCommand() *cobra.Command {
	var v copying
	c := &cobra.Command{
		Use:   "clone DISK NEWDISK",
		Short: "Make a new disk with the content that a disk has now",
		Long: `Make a new volume with the content that another one has now, as restore does with a snapshot. The source may be attached
by vmdkctl: it goes on being used, and the clone has what a power cut would leave.

Of a disk that is plain files, a linked clone is a child beside it (vmdkctl snapshot does the same): nobody may write DISK any more. A full
one is a copy (vmdkctl convert knows more).`,
		Example:           "  vmdkctl clone --datastore /srv/disks database database-for-tests\n  vmdkctl clone disk.vmdk copy.vmdk --mode full",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeDisk,
		RunE: func(c *cobra.Command, args []string) error {
			return a.clone(c.Context(), args[0], args[1], v)
		},
	}
	v.flags(c)
	return c
}

func (a *app) restore(ctx context.Context, snapshot, name string, v copying) error {
	s, err := openStore(a.datastore)
	if err != nil {
		return err
	}
	defer s.Close()
	snap, err := s.volumes.GetSnapshot(ctx, snapshotID(snapshot))
	if err != nil {
		return noSnapshot(err, s.root, snapshot)
	}
	of := &aVolume{s, snap.Disk, s.diskName(snap.Disk)}
	return a.makeFrom(ctx, of, name, snap.Size, host.Source{Snapshot: snap.ID}, "snapshot "+snap.Name, v)
}

func (a *app) clone(ctx context.Context, disk, name string, v copying) error {
	f, err := a.find(disk)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Volume == nil {
		return a.cloneFiles(ctx, f, disk, name, v)
	}
	of, err := a.openDisk(disk, "")
	if err != nil {
		return err
	}
	defer of.Close()
	d, err := of.volumes.Get(ctx, of.id)
	if err != nil {
		return err
	}
	return a.makeFrom(ctx, of, name, d.Size, host.Source{Disk: of.id}, d.Spec.Name, v)
}

// CloneFiles makes a child or a copy of a disk that is plain files.
func (a *app) cloneFiles(ctx context.Context, f *found, disk, name string, v copying) error {
	if err := v.check(); err != nil {
		return err
	}
	switch {
	case v.size != "":
		return fault.New(fault.Unsupported, "Leave --size out, and grow the copy.", "a clone of plain files has the size of %s", disk)
	case v.mode == string(host.CloneFull):
		return a.convert(ctx, conversion{from: disk, to: name, fromFmt: vmdkImage, toFmt: vmdkImage, dryRun: v.dryRun,
			shape: shape{v.shape.diskType, v.shape.format, defaultAdapter}})
	}
	return a.child(ctx, f, disk, name, childOptions{diskType: string(vmdk.TwoGbMaxExtentSparse), dryRun: v.dryRun})
}

// Check refuses words that are none of the options'.
func (v *copying) check() error {
	for _, x := range []struct {
		flag, got string
		words     []string
	}{{"mode", v.mode, cloneModes}, {"type", v.shape.diskType, diskTypes}, {"format", v.shape.format, diskFormats}} {
		if !slices.Contains(x.words, x.got) {
			return cli.Usage{Err: fault.New(fault.Invalid, "Use "+list(x.words)+".", "unknown %s %q", x.flag, x.got)}
		}
	}
	return nil
}

// MakeFrom makes the disk name from source, whose links the disk of has.
func (a *app) makeFrom(ctx context.Context, of *aVolume, name string, size int64, source host.Source, label string, v copying) error {
	if err := v.check(); err != nil {
		return err
	}
	if v.size != "" {
		asked, err := cli.ParseSize(v.size)
		if err != nil {
			return cli.Usage{Err: err}
		}
		if asked = roundUp(asked); asked < size {
			return fault.New(fault.OutOfRange, "Choose at least its size.", "%s has %s, the new disk would have %s", label, cli.FormatSize(size), cli.FormatSize(asked))
		}
		size = asked
	}
	spec, err := host.DiskSpec{Name: name, Datastore: of.root, Size: size, Format: host.DiskFormat(v.shape.format),
		Type: host.DiskType(v.shape.diskType), Source: &source, CloneMode: host.CloneMode(v.mode)}.Normalize()
	if err != nil {
		return cli.Usage{Err: err}
	}
	att, attached, err := of.keeper(ctx)
	if err != nil {
		return err
	}
	if v.dryRun {
		_, err := fmt.Fprintf(a.out, "Would make %s, %s, from %s (%s)\n", cli.Printable(name), cli.FormatSize(size), cli.Printable(label), v.mode)
		return err
	}
	var d host.Disk
	if attached {
		err = theRunDir().call(ctx, att.ID, keepCall{Op: opCreate, Disk: &spec}, &d, nil)
	} else {
		d, err = of.volumes.Create(ctx, spec)
	}
	if err != nil {
		return elsewhere(err)
	}
	f, err := findOnDatastore(of.root, d.ID)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := describeChain(f)
	if err != nil {
		return err
	}
	return a.format.Write(a.out, info, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Made %s from %s: %s, %s\n", cli.Printable(name), cli.Printable(label), cli.FormatSize(d.Size), count(len(d.Links), "link"))
		return err
	})
}
