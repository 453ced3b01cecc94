package vmdkctl

import (
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

func (a *app) lunCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "lun",
		Short: "Make, inspect and check a LUN that is a datastore, and copy disks out of it",
		Long: `A LUN is a block device of a storage array, or a file that stands for one, or the iscsi://[USER@]HOST[:PORT]/TARGET/LUN of a logical
unit, which needs no iSCSI of the kernel. "lun format" makes a store on it: it keeps the files
of a datastore without a file system of the kernel, so that nodes can be told where on the LUN a disk is. docs/lun.md tells more.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	var l lunFlags
	l.add(c.PersistentFlags())
	c.AddCommand(a.lunFormatCommand(&l), a.lunInfoCommand(&l), a.lunCheckCommand(&l), a.lunListCommand(&l), a.lunExportCommand(&l), a.lunClearCommand(&l),
		a.lunDeviceCommand())
	return c
}

func (a *app) lunFormatCommand(l *lunFlags) *cobra.Command {
	var extent, area string
	var o store.FormatOptions
	c := &cobra.Command{
		Use:   "format LUN",
		Short: "Make an empty store on a LUN",
		Long: `Make an empty store on a LUN. Refuses a LUN that is mounted or in use on this machine, and one whose first MiB or last 4 KiB
are not zeros, unless --force says that nothing on it is needed, and never one that a host owns now. The data on it is not
overwritten.`,
		Example: "  vmdkctl lun format /dev/disk/by-id/wwn-0x600140512345\n" +
			"  vmdkctl lun format iscsi://array.example/iqn.2026-01.example:disks/1",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if o.ExtentSize, err = cli.ParseSize(extent); err != nil {
				return err
			}
			if o.AreaSize, err = cli.ParseSize(area); err != nil {
				return err
			}
			lun, _, err := l.open(c.Context(), args[0], lunpath.Options{ReadWrite: true, Exclusive: true, Blank: true})
			if err != nil {
				return err
			}
			defer lun.Close()
			if err := mustBeOwnerless(c.Context(), lun); err != nil {
				return err
			}
			info, err := store.Format(lun, o)
			if err != nil {
				return err
			}
			return a.format.Write(a.out, info, func(w io.Writer) error { return writeStore(w, args[0], info) })
		},
	}
	c.Flags().StringVar(&extent, "extent-size", "1M", "what files are made of: a power of two from 4K to 64M")
	c.Flags().StringVar(&area, "area-size", "16M", "of each of the two metadata areas; 16M are enough for some 100000 files")
	c.Flags().BoolVar(&o.Force, "force", false, "format what is not empty")
	return c
}

func writeStore(w io.Writer, name string, i store.Info) error {
	f := storeFields(name, i)
	return f.Write(w)
}

func storeFields(name string, i store.Info) (f cli.Fields) {
	f.Add("LUN", name)
	f.Add("UUID", i.UUID)
	f.Add("Size", cli.FormatSize(i.Size))
	f.Add("For files", cli.FormatSize(i.Total))
	f.Add("Free", cli.FormatSize(i.Free))
	if i.Held > 0 {
		f.Add("Held", cli.FormatSize(i.Held)+", freed, but block maps that are out may still name it")
	}
	f.Add("Files", strconv.Itoa(i.Files))
	f.Add("Grants", strconv.Itoa(i.Grants))
	f.Add("Extents", cli.FormatSize(i.ExtentSize))
	f.Add("Catalogue", fmt.Sprintf("%s of %s, generation %d", cli.FormatSize(i.Catalogue), cli.FormatSize(i.AreaSize), i.Generation))
	return f
}

func (a *app) lunInfoCommand(l *lunFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "info LUN",
		Short: "Show the store on a LUN",
		Long: `Show the store on a LUN, and which host owns it. Takes no lock, so that one in use can be looked at. An owner writes to the
LUN once a second; it is watched for up to three.`,
		Example: "  vmdkctl lun info /dev/sdb",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			i, err := l.info(c.Context(), args[0])
			if err != nil {
				return err
			}
			return a.format.Write(a.out, i, func(w io.Writer) error { return i.write(w) })
		},
	}
}

func (a *app) lunCheckCommand(l *lunFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "check LUN",
		Short: "Check the store on a LUN",
		Long: `Check superblocks, catalogue, names and the places of all files of a store. Changes nothing and takes no lock. The disks in it
are checked by "vmdkctl check" after "vmdkctl lun export".

Exit codes: 0 whole, 3 damaged, 1 the check could not be done. Notes do not count.`,
		Example: "  vmdkctl lun check /dev/sdb",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			lun, _, err := l.open(c.Context(), args[0], lunpath.Options{Blank: true})
			if err != nil {
				return err
			}
			defer lun.Close()
			r, err := store.Check(lun)
			if err != nil {
				return fault.Wrap(err, "%s", args[0])
			}
			if err := a.format.Write(a.out, r, func(w io.Writer) error { return writeLUNCheck(w, args[0], r) }); err != nil {
				return err
			}
			if len(r.Problems) > 0 {
				return cli.Status(cli.ExitDamaged)
			}
			return nil
		},
	}
}

func writeLUNCheck(w io.Writer, name string, r store.Report) error {
	var b strings.Builder
	for _, p := range r.Problems {
		fmt.Fprintf(&b, "damaged: %s\n", cli.Printable(p))
	}
	for _, n := range r.Notes {
		fmt.Fprintf(&b, "note: %s\n", cli.Printable(n))
	}
	verdict := "the store is whole"
	if len(r.Problems) > 0 {
		verdict = "the store is damaged"
	}
	fmt.Fprintf(&b, "%s: %s, %d files, generation %d\n", cli.Printable(name), verdict, r.Info.Files, r.Info.Generation)
	_, err := io.WriteString(w, b.String())
	return err
}

// LunFile is a line of ls.
type lunFile struct {
	Name      string `json:"name"`
	Directory bool   `json:"directory,omitempty"`
	Size      int64  `json:"size"`      // bytes
	Allocated int64  `json:"allocated"` // bytes on the LUN
	Links     uint64 `json:"links"`
}

func (a *app) lunListCommand(l *lunFlags) *cobra.Command {
	var all bool
	c := &cobra.Command{
		Use:     "ls LUN [DIRECTORY]",
		Short:   "List the files in the store on a LUN",
		Long:    "List the files in a directory of the store on a LUN. Takes no lock.",
		Example: "  vmdkctl lun ls /dev/sdb volumes\n  vmdkctl lun ls --recursive /dev/sdb",
		Args:    cobra.RangeArgs(1, 2),
		RunE: func(c *cobra.Command, args []string) error {
			lun, s, err := l.openStore(c.Context(), args[0])
			if err != nil {
				return err
			}
			defer lun.Close()
			at := ""
			if len(args) > 1 {
				at = args[1]
			}
			d, err := inStore(s, at)
			if err != nil {
				return err
			}
			var files []lunFile
			if err := listLUN(d, "", all, &files); err != nil {
				return err
			}
			return a.format.Write(a.out, files, func(w io.Writer) error {
				t := cli.NewTable("NAME", ">SIZE", ">ALLOCATED", ">LINKS")
				for _, f := range files {
					if f.Directory {
						t.Row(f.Name + "/")
						continue
					}
					t.Row(f.Name, cli.FormatSize(f.Size), cli.FormatSize(f.Allocated), strconv.FormatUint(f.Links, 10))
				}
				return t.Write(w)
			})
		},
	}
	c.Flags().BoolVarP(&all, "recursive", "R", false, "with everything below")
	return c
}

// inStore opens a directory by its path.
func inStore(s *store.Store, at string) (fsx.Dir, error) {
	d := s.Root()
	for _, name := range strings.Split(path.Clean("/" + at)[1:], "/") {
		if name == "" {
			continue
		}
		var err error
		if d, err = d.Sub(name); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func listLUN(d fsx.Dir, below string, all bool, out *[]lunFile) error {
	names, err := d.List()
	if err != nil {
		return err
	}
	for _, name := range names {
		i, err := d.Stat(name)
		if err != nil {
			return err
		}
		*out = append(*out, lunFile{path.Join(below, name), i.Mode.IsDir(), i.Size, i.Allocated, i.Links})
		if !i.Mode.IsDir() || !all {
			continue
		}
		sub, err := d.Sub(name)
		if err != nil {
			return err
		}
		if err := listLUN(sub, path.Join(below, name), all, out); err != nil {
			return err
		}
	}
	return nil
}
