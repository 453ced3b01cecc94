package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// New disks have whole MiB, as VMware's products make them.
const capacityUnit = 1 << 20

const defaultAdapter = "lsilogic"

var (
	diskTypes = []string{string(vmdk.MonolithicFlat), string(vmdk.TwoGbMaxExtentSparse), string(vmdk.MonolithicSparse), string(vmdk.TwoGbMaxExtentFlat),
		string(vmdk.VMFS), string(vmdk.VMFSSparse)}
	diskFormats = []string{string(vmdk.Thin), string(vmdk.ZeroedThick), string(vmdk.EagerZeroedThick)}
)

// Shape is how a new disk is laid out; create and convert share it.
type shape struct{ diskType, format, adapter string }

func (s *shape) flags(c *cobra.Command) {
	c.Flags().StringVar(&s.diskType, "type", string(vmdk.MonolithicFlat), "createType: "+list(diskTypes)+"; or a number of vmware-vdiskmanager, 0 to 6")
	c.Flags().StringVar(&s.format, "format", string(vmdk.Thin), "how a flat disk takes its space: "+list(diskFormats))
	c.Flags().StringVar(&s.adapter, "adapter", defaultAdapter, "adapter that the descriptor names: lsilogic, buslogic, ide or pvscsi")
	must(c.RegisterFlagCompletionFunc("type", fixed(diskTypes...)))
	must(c.RegisterFlagCompletionFunc("format", fixed(diskFormats...)))
	must(c.RegisterFlagCompletionFunc("adapter", fixed("lsilogic", "buslogic", "ide", "pvscsi")))
}

func (s *shape) params(capacity int64) vmdk.CreateParams {
	return vmdk.CreateParams{Capacity: capacity, Type: vmdk.Type(s.diskType), Format: vmdk.Format(s.format), AdapterType: s.adapter}
}

// Check refuses what no disk can be, in words for a person; package vmdk has the last word.
func (s *shape) check(types []string, capacity, smallest int64) error {
	largest := vmdk.MaxCapacity
	if slices.Contains([]vmdk.Type{vmdk.MonolithicSparse, vmdk.VMFSSparse, vmdk.StreamOptimized}, vmdk.Type(s.diskType)) {
		largest = vmdk.MaxSparseExtent
	}
	switch {
	case !slices.Contains(types, s.diskType):
		return cli.Usage{Err: fault.New(fault.Invalid, "Use "+list(types)+".", "unknown type %q", s.diskType)}
	case !slices.Contains(diskFormats, s.format):
		return cli.Usage{Err: fault.New(fault.Invalid, "Use "+list(diskFormats)+".", "unknown format %q", s.format)}
	case capacity < smallest || capacity > largest:
		return fault.New(fault.OutOfRange, "Choose a size in this range; monolithicFlat reaches "+cli.FormatSize(vmdk.MaxCapacity)+".",
			"the capacity of a %s disk is from %s to %s, not %s", s.diskType, cli.FormatSize(smallest), cli.FormatSize(largest), cli.FormatSize(capacity))
	}
	return nil
}

func (a *app) createCommand() *cobra.Command {
	var s shape
	var size string
	var dryRun bool
	c := &cobra.Command{
		Use:   "create FILE|NAME --size SIZE",
		Short: "Make a new, empty disk",
		Long: `Make a new, empty disk. FILE is the descriptor's path and ends in .vmdk; the extents get their names from it. The size
is rounded up to whole MiB. FILE appears last and complete: a run that is interrupted or finds no space leaves nothing.

With --datastore DIR it is a volume called NAME; asked for again with the same options, the volume that is there is the
answer. DIR must exist; it becomes a datastore if it is none.`,
		Example: "  vmdkctl create disk.vmdk --size 10G\n  vmdkctl create disk.vmdk --size 10G --type twoGbMaxExtentSparse\n" +
			"  vmdkctl create disk.vmdk --size 512M --format eagerzeroedthick\n" +
			"  vmdkctl create --datastore /srv/disks database --size 10G",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			bytes, err := cli.ParseSize(size)
			if err != nil {
				return cli.Usage{Err: err}
			}
			bytes = roundUp(bytes)
			s.resolve(c.Flags().Changed("format"))
			if err := s.check(diskTypes, bytes, capacityUnit); err != nil {
				return err
			}
			if a.datastore != "" {
				return a.createVolume(c.Context(), args[0], s, bytes, dryRun)
			}
			return a.create(c.Context(), args[0], s.params(bytes), dryRun)
		},
	}
	c.Flags().StringVar(&size, "size", "", "capacity: 10G, 512M, ...")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "say what would be made, make nothing")
	s.flags(c)
	must(c.MarkFlagRequired("size"))
	must(c.RegisterFlagCompletionFunc("size", cobra.NoFileCompletions))
	return c
}

func (a *app) create(ctx context.Context, path string, p vmdk.CreateParams, dryRun bool) error {
	d, err := fsx.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer d.Close()
	name := filepath.Base(path)
	if dryRun {
		return a.planned(d, path, p)
	}
	progress := cli.NewProgress(a.err, "create "+name, p.Capacity)
	var told int64
	p.Progress = func(done, _ int64) { progress.Add(done - told); told = done }
	_, err = vmdk.Create(ctx, d, name, p)
	progress.Done()
	if err != nil {
		return err
	}
	f, err := a.findFile(path)
	if err != nil {
		return err
	}
	return a.answerCreated(f)
}

// CreateVolume makes a volume on the datastore.
func (a *app) createVolume(ctx context.Context, name string, s shape, size int64, dryRun bool) error {
	if dryRun {
		return cli.Usage{Err: fault.New(fault.Invalid, "Leave one of them out.", "--dry-run does not work with --datastore")}
	}
	if s.adapter != defaultAdapter {
		return cli.Usage{Err: fault.New(fault.Invalid, "Leave --adapter out.", "a volume's adapter is always %s", defaultAdapter)}
	}
	store, volumes, err := openVolumes(a.datastore, slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer store.Close()
	d, err := volumes.Create(ctx, host.DiskSpec{Name: name, Datastore: a.datastore, Size: size,
		Format: host.DiskFormat(s.format), Type: host.DiskType(s.diskType)})
	if err != nil {
		return err
	}
	f, err := findOnDatastore(a.datastore, d.ID)
	if err != nil {
		return err
	}
	return a.answerCreated(f)
}

// AnswerCreated describes a disk that this run made, and closes f.
func (a *app) answerCreated(f *found) error {
	defer f.Close()
	info, err := describe(f, len(f.Names)-1)
	if err != nil {
		return err
	}
	return a.format.Write(a.out, info, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Created %s: %s, %s, %s allocated\n", cli.Printable(info.File), info.Type,
			cli.FormatSize(info.Capacity), cli.FormatSize(info.Allocated))
		return err
	})
}

// Planned is the answer of a dry run; it finds what would make the run fail at its start.
func (a *app) planned(d fsx.Dir, path string, p vmdk.CreateParams) error {
	_, err := d.Stat(filepath.Base(path))
	switch {
	case err == nil:
		return fault.New(fault.Exists, "", "%s is there", path)
	case !errors.Is(err, fs.ErrNotExist):
		return err
	}
	_, free, err := d.Space()
	if err != nil {
		return err
	}
	if p.Format != vmdk.Thin && free < p.Capacity {
		return fault.New(fault.NoSpace, "", "a %s disk of %s does not fit into the %s that are free", p.Format,
			cli.FormatSize(p.Capacity), cli.FormatSize(free))
	}
	plan := struct {
		File     string      `json:"file"`
		Type     vmdk.Type   `json:"type"`
		Format   vmdk.Format `json:"format"`
		Capacity int64       `json:"capacity"` // bytes
		Free     int64       `json:"free"`     // bytes on the file system
		DryRun   bool        `json:"dryRun"`
	}{path, p.Type, p.Format, p.Capacity, free, true}
	return a.format.Write(a.out, plan, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "Would create %s: %s, %s, %s; %s are free\n", cli.Printable(path), p.Type, p.Format,
			cli.FormatSize(p.Capacity), cli.FormatSize(free))
		return err
	})
}

func roundUp(n int64) int64 {
	if rest := n % capacityUnit; rest != 0 && n < 1<<62 {
		n += capacityUnit - rest
	}
	return n
}

// List writes "a, b or c".
func list(words []string) string {
	s := ""
	for i, w := range words {
		switch {
		case i == 0:
		case i == len(words)-1:
			s += " or "
		default:
			s += ", "
		}
		s += w
	}
	return s
}
