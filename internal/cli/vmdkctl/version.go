package vmdkctl

import (
	"io"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show what this program was built from",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v := cli.BuildVersion()
			return a.format.Write(a.out, v, func(w io.Writer) error {
				var f cli.Fields
				f.Add("Version", v.Version)
				f.Add("Revision", v.Revision)
				f.Add("Go", v.Go)
				f.Add("Platform", v.Platform)
				return f.Write(w)
			})
		},
	}
}
