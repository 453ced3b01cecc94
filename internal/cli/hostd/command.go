package hostd

import (
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// DefaultSocket is where hostd listens.
const DefaultSocket = "/run/vmdk-csi/hostd.sock"

// logOptions are shared by hostd and its workers, which log to the same place.
type logOptions struct{ format, level string }

func (o *logOptions) flags(c *cobra.Command) {
	f := c.PersistentFlags()
	f.StringVar(&o.format, "log-format", "text", "text or json")
	f.StringVar(&o.level, "log-level", "info", "debug, info, warn or error")
}

func (o *logOptions) logger(w io.Writer) (*slog.Logger, error) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(o.level)); err != nil {
		return nil, fault.New(fault.Invalid, "Use debug, info, warn or error.", "--log-level=%s: %w", o.level, err)
	}
	ho := &slog.HandlerOptions{Level: level}
	switch o.format {
	case "json":
		return slog.New(slog.NewJSONHandler(w, ho)), nil
	case "text":
		return slog.New(slog.NewTextHandler(w, ho)), nil
	}
	return nil, fault.New(fault.Invalid, "Use text or json.", "--log-format=%s", o.format)
}

// NewCommand is the program.
func NewCommand() *cobra.Command {
	var lo logOptions
	c := &cobra.Command{
		Use:   "vmdk-hostd",
		Short: "Keeps VMDK disks in directories and serves attached ones",
		Long: `vmdk-hostd owns the datastores of one node: it makes and deletes disks, and runs one worker process for each disk
that is attached. The node service, vmdkctl and a succeeding vmdk-hostd talk to it over a unix socket.`,
		SilenceErrors: true, SilenceUsage: true,
	}
	lo.flags(c)
	c.AddCommand(serveCommand(&lo), diskCommand(&lo))
	return c
}

func serveCommand(lo *logOptions) *cobra.Command {
	var o Options
	var stores []string
	var rate string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve the datastores of this node",
		Example: `  vmdk-hostd serve --node-name "$(hostname)" --datastore local=/srv/vmdk
  vmdk-hostd serve --node-name a --datastore fast=/mnt/nvme --datastore nfs=/mnt/nfs,scope=shared`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if o.Log, err = lo.logger(c.ErrOrStderr()); err != nil {
				return err
			}
			if o.Datastores, err = parseDatastores(stores); err != nil {
				return err
			}
			if o.ConsolidateRate, err = cli.ParseSize(rate); err != nil {
				return err
			}
			o.WorkerCommand = []string{"/proc/self/exe", "disk", "--log-format=" + lo.format, "--log-level=" + lo.level}
			return Run(c.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.Node, "node-name", "", "name of this node; it owns disks under it (required)")
	f.StringVar(&o.Socket, "socket", DefaultSocket, "unix socket to serve")
	f.StringVar(&o.RunDir, "run-dir", "/run/vmdk-csi", "directory for what ends with the machine's run: the slots of attached disks")
	f.StringVar(&o.StateDir, "state-dir", "", "directory for what survives it: claims and the identities of datastores (default: --run-dir)")
	f.StringArrayVar(&stores, "datastore", nil, "NAME=PATH[,scope=node|shared][,locks=off]: a directory that exists; node, the default, belongs to this node alone; locks=off takes no byte locks on its files; may be repeated")
	f.StringVar(&rate, "consolidate-rate", "200MiB", "how much a merge of links copies per second at most")
	f.StringVar(&o.TakeOverFrom, "take-over-from", "", "socket of a hostd to take all disks from (default: one that answers at --socket)")
	f.StringVar(&o.Health, "health-addr", "", "address for /healthz, /readyz and /metrics; empty: none")
	f.IntSliceVar(&o.UIDs, "allow-uid", nil, "uids that may use the socket besides root and the own one")
	return c
}

func parseDatastores(args []string) ([]local.DatastoreConfig, error) {
	var list []local.DatastoreConfig
	for _, a := range args {
		name, rest, ok := strings.Cut(a, "=")
		path, opts, more := strings.Cut(rest, ",")
		d := local.DatastoreConfig{Name: name, Path: path, Scope: host.ScopeNode}
		for more && ok {
			var opt string
			opt, opts, more = strings.Cut(opts, ",")
			key, value, _ := strings.Cut(opt, "=")
			switch {
			case key == "scope":
				d.Scope = host.Scope(value)
			case key == "locks" && (value == "on" || value == "off"):
				d.NoLocks = value == "off"
			default:
				ok = false
			}
		}
		if !ok || path == "" {
			return nil, fault.New(fault.Invalid, "Write NAME=PATH, with ,scope=shared or ,locks=off behind it if you need them.", "--datastore=%s", a)
		}
		list = append(list, d)
	}
	if len(list) == 0 {
		return nil, fault.New(fault.Invalid, "Give --datastore NAME=PATH at least once.", "there is no datastore to serve")
	}
	return list, nil
}

func diskCommand(lo *logOptions) *cobra.Command {
	return &cobra.Command{
		Use:    "disk ID",
		Short:  "Serve one attached disk (started by serve)",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			log, err := lo.logger(os.Stderr)
			if err != nil {
				return err
			}
			return worker.Main(c.Context(), worker.Params{
				Files: worker.Inherited(),
				NewServer: func(dev *os.File, log *slog.Logger) export.Server {
					return fuse.NewServer(dev, fuse.Options{Log: log})
				},
				Log: log.With("disk", args[0]),
			})
		},
	}
}
