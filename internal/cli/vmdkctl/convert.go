package vmdkctl

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// Image formats that convert reads and writes.
const (
	rawImage  = "raw"
	vmdkImage = "vmdk"
)

// Pipe stands for the standard input or output.
const pipe = "-"

// Conversion is what one run of convert does.
type conversion struct {
	from, to string // paths, or pipe
	size     string // capacity of a raw image from a pipe
	fromFmt  string
	toFmt    string
	shape    shape
	dryRun   bool
}

// Converted is its answer.
type converted struct {
	Source      string  `json:"source"`
	Destination string  `json:"destination"`
	Format      string  `json:"format"`
	Type        string  `json:"type,omitempty"`
	Capacity    int64   `json:"capacity"`  // bytes
	Data        int64   `json:"data"`      // bytes of the source that are not known to be zeros
	Written     int64   `json:"written"`   // bytes that were not zeros
	Allocated   int64   `json:"allocated"` // bytes that the destination uses
	Seconds     float64 `json:"seconds"`
	DryRun      bool    `json:"dryRun,omitempty"`
}

func (a *app) convertCommand() *cobra.Command {
	var v conversion
	c := &cobra.Command{
		Use:   "convert SOURCE DESTINATION",
		Short: "Convert between raw images and VMDK disks",
		Long: `Copy a disk's content into a new disk or raw image. What ends in .vmdk is a VMDK (all links of its chain become one), anything
else is raw; --from and --to say it explicitly, and --to may be a type: it means the same as --to vmdk --type TYPE. A raw SOURCE may be
a block device. Holes stay holes, and blocks of zeros become holes unless --format asks for space.

A "-" is standard input or output. Out of a pipe comes a streamOptimized disk, or with --from raw an image of --size bytes; into
one goes a streamOptimized disk (--to streamOptimized) or a raw image (--to raw).

DESTINATION must not exist. It is built beside its place under a hidden name, made durable, and gets its name last: an
interrupted run, or one that finds no space, leaves nothing. The source is locked against writers while it is read. With
--datastore it may be a snapshot, also of a disk that is attached: a backup of a disk in use.`,
		Example: "  vmdkctl convert disk.vmdk --to streamOptimized - | ssh host vmdkctl convert - disk.vmdk\n  vmdkctl convert disk.vmdk disk.raw\n  vmdkctl convert /dev/sdb disk.vmdk --type twoGbMaxExtentSparse\n" +
			"  vmdkctl convert --datastore /var/lib/vmdk-csi/default pvc-4711 backup.raw\n" +
			"  vmdkctl convert --datastore /var/lib/vmdk-csi/default monday monday.vmdk",
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			v.from, v.to = args[0], args[1]
			v.typed(c.Flags().Changed("format"))
			return a.convert(c.Context(), v)
		},
	}
	c.Flags().StringVar(&v.fromFmt, "from", "", "format of SOURCE: raw or vmdk (default: by its name)")
	c.Flags().StringVar(&v.toFmt, "to", "", "format of DESTINATION: raw, vmdk, or a type: "+list(convertTypes)+" (default: by its name)")
	c.Flags().StringVar(&v.size, "size", "", "capacity of a raw image from standard input: 10G, 512M, ...")
	c.Flags().BoolVar(&v.dryRun, "dry-run", false, "say what would be made, make nothing")
	v.shape.flags(c)
	must(c.RegisterFlagCompletionFunc("from", fixed(rawImage, vmdkImage)))
	must(c.RegisterFlagCompletionFunc("to", fixed(append([]string{rawImage, vmdkImage}, convertTypes...)...)))
	must(c.RegisterFlagCompletionFunc("size", cobra.NoFileCompletions))
	return c
}

// Typed resolves types, also where --to has one.
func (v *conversion) typed(formatGiven bool) {
	if v.toFmt != "" && v.toFmt != rawImage && v.toFmt != vmdkImage {
		as := v.shape
		as.diskType = v.toFmt
		if as.resolve(formatGiven); slices.Contains(convertTypes, as.diskType) {
			v.shape, v.toFmt = as, vmdkImage
			return
		}
	}
	v.shape.resolve(formatGiven)
}

// ConvertTypes are the types that convert makes.
var convertTypes = append(slices.Clone(diskTypes), string(vmdk.StreamOptimized))

// ImageFormat is the format asked for, or the one that a name stands for; content is never probed, because the guest
// writes the content of a raw image.
func imageFormat(asked, path string, volume bool) (string, error) {
	switch {
	case asked == rawImage || asked == vmdkImage:
		return asked, nil
	case asked != "":
		return "", cli.Usage{Err: fault.New(fault.Invalid, "Use raw or vmdk.", "unknown image format %q", asked)}
	case volume || strings.HasSuffix(path, ".vmdk"):
		return vmdkImage, nil
	}
	return rawImage, nil
}

func (a *app) convert(ctx context.Context, v conversion) (err error) {
	if v.fromFmt, err = imageFormat(v.fromFmt, v.from, a.datastore != "" || v.from == pipe); err != nil {
		return err
	}
	if v.toFmt, err = imageFormat(v.toFmt, v.to, false); err != nil {
		return err
	}
	if v.to == pipe {
		return a.convertToPipe(ctx, v)
	}
	if v.toFmt == rawImage && v.shape.format != string(vmdk.Thin) {
		return cli.Usage{Err: fault.New(fault.Invalid, "Leave --format out.", "a raw image is always thin")}
	}
	src, err := a.openSource(v)
	if err != nil {
		return fault.Wrap(err, "source %s", v.from)
	}
	defer src.Close()
	done := converted{Source: v.from, Destination: v.to, Format: v.toFmt, Capacity: src.Size(), DryRun: v.dryRun}
	if v.toFmt == vmdkImage {
		done.Type = v.shape.diskType
		done.Capacity = (src.Size() + vmdk.SectorSize - 1) / vmdk.SectorSize * vmdk.SectorSize
		if err := v.shape.check(convertTypes, done.Capacity, vmdk.SectorSize); err != nil {
			return err
		}
	}
	if done.Data, err = dataBytes(ctx, src); err != nil {
		return fault.Wrap(err, "source %s", v.from)
	}
	if v.from == pipe {
		done.Data = src.Size() // at most
	}
	if !v.dryRun {
		if err := a.build(ctx, src, v, &done); err != nil {
			return err
		}
	}
	return a.format.Write(a.out, done, func(w io.Writer) error { return writeConverted(w, done) })
}

func (a *app) openSource(v conversion) (source, error) {
	if v.from == pipe {
		return openPipe(a.in, v)
	}
	if v.fromFmt == rawImage {
		return openRaw(v.from)
	}
	f, err := a.findPoint(v.from)
	if err != nil {
		return nil, err
	}
	return openChain(f)
}

// Build makes the destination. Protocol:
//
//  1. make a hidden directory beside the destination        a crash from here on leaves it; the next run for this
//     name removes it, since nobody holds its lock
//  2. make the files in it, copy, sync, close
//  3. link every file but the one that is named to its place
//  4. link that one: this is the commit                     a crash between 3 and 4 leaves extents without a descriptor
//  5. remove the hidden directory
//
// What a failed run linked it removes again; what was there before makes step 3 or 4 fail and is never touched.
func (a *app) build(ctx context.Context, src source, v conversion, done *converted) (err error) {
	d, err := fsx.OpenRoot(filepath.Dir(v.to))
	if err != nil {
		return err
	}
	defer d.Close()
	name := filepath.Base(v.to)
	if err := absent(d, name, v.to); err != nil {
		return err
	}
	p, err := newPartial(d, name)
	if err != nil {
		return fault.Wrap(err, "destination %s", v.to)
	}
	defer p.remove()
	out, err := openSink(ctx, p.dir, name, v, done.Capacity)
	if err != nil {
		return fault.Wrap(err, "destination %s", v.to)
	}
	progress := cli.NewProgress(a.err, "convert", done.Data)
	done.Written, err = transfer(ctx, out, src, progress.Add)
	progress.Done()
	if cerr := out.finish(); err == nil {
		err = cerr
	}
	if err == nil {
		done.Allocated, err = p.publish(name)
	}
	done.Seconds = progress.Elapsed().Seconds()
	return fault.Wrap(err, "destination %s", v.to)
}

// Transfer copies a source of either kind.
func transfer(ctx context.Context, dst sink, src source, progress func(int64)) (int64, error) {
	if p, ok := src.(*pipeSource); ok {
		return p.copyTo(ctx, dst, progress)
	}
	return copyData(ctx, dst, src, progress)
}

// ConvertToPipe sends the content to standard output; the answer would be in its way.
func (a *app) convertToPipe(ctx context.Context, v conversion) error {
	if v.toFmt == vmdkImage && v.shape.diskType != string(vmdk.StreamOptimized) || v.dryRun {
		return cli.Usage{Err: fault.New(fault.Invalid, "Use --to streamOptimized or --to raw, without --dry-run.", "standard output takes what is written from its beginning to its end")}
	}
	src, err := a.openSource(v)
	if err != nil {
		return fault.Wrap(err, "source %s", v.from)
	}
	defer src.Close()
	capacity := src.Size()
	if v.toFmt == vmdkImage {
		capacity = (capacity + vmdk.SectorSize - 1) / vmdk.SectorSize * vmdk.SectorSize
	}
	out, err := openPipeSink(a.out, v, capacity)
	if err != nil {
		return err
	}
	progress := cli.NewProgress(a.err, "convert", src.Size())
	_, err = transfer(ctx, out, src, progress.Add)
	progress.Done()
	if cerr := out.finish(); err == nil {
		err = cerr
	}
	return fault.Wrap(err, "standard output")
}

func writeConverted(w io.Writer, c converted) error {
	what := c.Format
	if c.Type != "" {
		what = c.Type
	}
	if c.DryRun {
		_, err := fmt.Fprintf(w, "Would convert %s to %s: %s, %s with %s of data\n", cli.Printable(c.Source), cli.Printable(c.Destination),
			what, cli.FormatSize(c.Capacity), cli.FormatSize(c.Data))
		return err
	}
	_, err := fmt.Fprintf(w, "Converted %s to %s: %s, %s, %s allocated\n", cli.Printable(c.Source), cli.Printable(c.Destination),
		what, cli.FormatSize(c.Capacity), cli.FormatSize(c.Allocated))
	return err
}
