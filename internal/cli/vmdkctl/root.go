package vmdkctl

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// App is what the commands of one run share.
type app struct {
	in        io.Reader
	out, err  io.Writer
	format    cli.Format
	datastore string            // --datastore
	devices   map[string]string // --device
	ignoreCID bool              // --ignore-cid
	ran       bool              // the command line was right
}

// Main runs the program with args (without its name) and returns its exit code.
func Main(ctx context.Context, args []string, out, errOut io.Writer) int {
	a := &app{in: os.Stdin, out: out, err: errOut, format: cli.TableFormat}
	root := a.command()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	switch {
	case err != nil && !a.ran:
		err = cli.Usage{Err: fault.New(fault.Invalid, "`"+root.Name()+" --help` and `"+root.Name()+" COMMAND --help` show what there is.", "%w", err)}
	case errors.Is(err, context.Canceled) && ctx.Err() != nil:
		err = fault.New(fault.Timeout, "Run it again; what it had begun is removed.", "interrupted")
	}
	return cli.Report(errOut, err)
}

// Command makes the command tree.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "vmdkctl",
		Short: "Make, inspect, check, repair, convert, change, snapshot and attach VMDK disks",
		Long: `Make, inspect, check, repair, convert, change, snapshot and attach VMDK disks, without Kubernetes.

A DISK is the path of a descriptor or of a single-file disk (.vmdk), or of a volume's directory on a datastore; with
--datastore DIR it is the id or the name of a volume there. info, chain, map, check and diff look at a disk while it is
attached: they open it read-only and take no lock; they, and convert, take the id or name of a snapshot as well, and a
snapshot of an attached disk can be read. A datastore of the driver is the same thing as one made here.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetOut(a.out)
	root.SetErr(a.err)
	flags := root.PersistentFlags()
	flags.VarP(&a.format, "output", "o", "how to answer: table, json or yaml")
	flags.StringVar(&a.datastore, "datastore", "", "directory of a datastore; DISK is then the id or name of a volume on it")
	flags.StringToStringVar(&a.devices, "device", nil, "EXTENT=PATH: the device of an extent of a raw disk, which a descriptor alone never opens")
	flags.BoolVar(&a.ignoreCID, "ignore-cid", false, "read a chain whose parent was modified; what it reads may be a mixture (see fix-cid)")
	must(root.RegisterFlagCompletionFunc("output", fixed(cli.Formats...)))
	must(root.MarkPersistentFlagDirname("datastore"))
	root.AddGroup(
		&cobra.Group{ID: "disk", Title: "Disks as files:"},
		&cobra.Group{ID: "snapshot", Title: "Volumes of a datastore and their snapshots:"},
		&cobra.Group{ID: "device", Title: "Disks as devices:"},
		&cobra.Group{ID: "lun", Title: "LUNs as datastores:"},
	)
	a.addCommands(root)
	return root
}

func (a *app) addCommands(root *cobra.Command) {
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("disk", a.createCommand(), a.infoCommand(), a.chainCommand(), a.mapCommand(), a.checkCommand(), a.repairCommand(), a.convertCommand(), a.diffCommand(),
		a.readCommand(), a.writeCommand(), a.checksumCommand(), a.growCommand(), a.shrinkCommand(), a.defragmentCommand(), a.renameCommand(),
		a.rebaseCommand(), a.fixCIDCommand())
	add("snapshot", a.snapshotCommand(), a.snapshotsCommand(), a.restoreCommand(), a.cloneCommand(), a.consolidateCommand(),
		a.flattenCommand(), a.deleteCommand())
	add("device", a.attachCommand(), a.detachCommand(), a.listCommand(), a.serveCommand(), a.transportsCommand())
	add("lun", a.lunCommand())
	add("", a.keeperCommand(), a.workerCommand(), a.versionCommand(), a.docsCommand(root))
	a.noteRuns(root)
}

// NoteRuns makes every command say that it began: an error before that is the command line's.
func (a *app) noteRuns(c *cobra.Command) {
	if run := c.RunE; run != nil {
		c.RunE = func(c *cobra.Command, args []string) error {
			a.ran = true
			return run(c, args)
		}
	}
	for _, sub := range c.Commands() {
		a.noteRuns(sub)
	}
}

// Must is for mistakes in this package that every run would show.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

func fixed(values ...string) cobra.CompletionFunc {
	return cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)
}
