package vmdkctl

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

// App is what the commands of one run share.
type app struct {
	out, err  io.Writer
	format    cli.Format
	datastore string // --datastore
}

// Main runs the program with args (without its name) and returns its exit code.
func Main(ctx context.Context, args []string, out, err io.Writer) int {
	root := New(out, err)
	root.SetArgs(args)
	return cli.Report(err, root.ExecuteContext(ctx))
}

// New makes the command tree.
func New(out, err io.Writer) *cobra.Command {
	a := &app{out: out, err: err, format: cli.TableFormat}
	root := &cobra.Command{
		Use:   "vmdkctl",
		Short: "Make, inspect, check, convert and attach VMDK disks",
		Long: `Make, inspect, check, convert and attach VMDK disks, without Kubernetes.

A DISK is the path of a descriptor or of a single-file disk (.vmdk), or of a volume's directory on a datastore; with
--datastore DIR it is the id or the name of a volume there. info, chain, map and check look at a disk while it is
attached: they open it read-only and take no lock.`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE:          func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.SetOut(out)
	root.SetErr(err)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return cli.Usage{Err: err} })
	root.CompletionOptions.HiddenDefaultCmd = false
	flags := root.PersistentFlags()
	flags.VarP(&a.format, "output", "o", "how to answer: table, json or yaml")
	flags.StringVar(&a.datastore, "datastore", "", "directory of a datastore; DISK is then the id or name of a volume on it")
	must(root.RegisterFlagCompletionFunc("output", fixed(cli.Formats...)))
	must(root.MarkPersistentFlagDirname("datastore"))
	root.AddGroup(
		&cobra.Group{ID: "disk", Title: "Disks as files:"},
		&cobra.Group{ID: "device", Title: "Disks as devices:"},
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
	add("", a.versionCommand(), a.docsCommand(root))
	usageErrors(root)
	_ = add
}

// UsageErrors makes every wrong number of arguments an error of the command line.
func usageErrors(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error {
			if err := check(c, args); err != nil {
				return cli.Usage{Err: err}
			}
			return nil
		}
	}
	for _, sub := range c.Commands() {
		usageErrors(sub)
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

// DiskArgument completes the first argument with .vmdk files and directories.
func diskArgument(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return []string{"vmdk"}, cobra.ShellCompDirectiveFilterFileExt
}
