package hostd

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/local"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
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
	var rate, credentials string
	c := &cobra.Command{
		Use:   "serve",
		Short: "Serve the datastores of this node",
		Example: `  vmdk-hostd serve --node-name "$(hostname)" --datastore local=/srv/vmdk
  vmdk-hostd serve --node-name a --datastore fast=/mnt/nvme --datastore nfs=/mnt/nfs,scope=shared
  vmdk-hostd serve --node-name a --datastore san=lun:/dev/disk/by-id/wwn-0x6001405 --advertise a.example --peers b.example:9810 \
    --tls-ca-cert ca.crt --tls-ca-key ca.key`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) (err error) {
			if o.Log, err = lo.logger(c.ErrOrStderr()); err != nil {
				return err
			}
			if o.Datastores, o.LUNs, err = parseDatastores(stores); err != nil {
				return err
			}
			if err = readCredentials(credentials, o.LUNs); err != nil {
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
	f.StringArrayVar(&stores, "datastore", nil, "NAME=PATH[,scope=node|shared][,locks=off]: a directory that exists; node, the default, belongs to this node alone; locks=off takes no byte locks on its files. "+
		"NAME=lun:WHERE[,fencing=reservations|lease-only]: a LUN that vmdkctl lun has formatted, by the path of a device or file or an iscsi:// URL; lease-only lets nodes write it directly also where none can be cut off. May be repeated")
	n := &o.Network
	f.StringVar(&n.Control, "listen-control", ":9810", "address for other hosts, with LUNs or --tls-ca-cert")
	f.StringVar(&n.NBD, "listen-nbd", ":9809", "address for their data")
	f.StringVar(&n.Advertise, "advertise", "", "host or address at which other hosts reach this one (default: 127.0.0.1)")
	f.StringSliceVar(&n.Peers, "peers", nil, "where the other hosts answer: HOST:PORT,... or dns:NAME:PORT for all addresses of a name")
	f.StringVar(&credentials, "lun-credentials", "", "JSON file of what iscsi:// LUNs ask for, by datastore: {\"NAME\": {\"initiator\", \"secret\", \"targetUser\", \"targetSecret\"}}")
	f.StringVar(&n.CACert, "tls-ca-cert", "", "certificate (PEM) of the authority by which hosts know each other; with it hosts lend each other disks in directories, over NBD")
	f.StringVar(&n.CAKey, "tls-ca-key", "", "its key (PEM); hostd issues itself a certificate for its node")
	f.StringVar(&rate, "consolidate-rate", "200MiB", "how much a merge of links copies per second at most")
	f.StringVar(&o.TakeOverFrom, "take-over-from", "", "socket of a hostd to take all disks from (default: one that answers at --socket)")
	f.StringVar(&o.Health, "health-addr", "", "address for /healthz, /readyz and /metrics; empty: none")
	f.IntSliceVar(&o.UIDs, "allow-uid", nil, "uids that may use the socket besides root and the own one")
	return c
}

func parseDatastores(args []string) (list []local.DatastoreConfig, luns []LUN, err error) {
	for _, a := range args {
		name, rest, ok := strings.Cut(a, "=")
		if where, isLUN := strings.CutPrefix(rest, "lun:"); isLUN {
			l, err := parseLUN(name, where)
			if err != nil {
				return nil, nil, err
			}
			luns = append(luns, l)
			continue
		}
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
			return nil, nil, fault.New(fault.Invalid, "Write NAME=PATH, with ,scope=shared or ,locks=off behind it if you need them.", "--datastore=%s", a)
		}
		list = append(list, d)
	}
	if len(list)+len(luns) == 0 {
		return nil, nil, fault.New(fault.Invalid, "Give --datastore NAME=PATH at least once.", "there is no datastore to serve")
	}
	return list, luns, distinct(list, luns)
}

// parseLUN reads what is behind lun:.
func parseLUN(name, rest string) (LUN, error) {
	where, opts, more := strings.Cut(rest, ",")
	l := LUN{Name: name, Where: where}
	for more {
		var opt string
		opt, opts, more = strings.Cut(opts, ",")
		switch opt {
		case "fencing=reservations":
			l.LeaseOnly = false
		case "fencing=lease-only":
			l.LeaseOnly = true
		default:
			return l, fault.New(fault.Invalid, "Write NAME=lun:WHERE, with ,fencing=reservations or ,fencing=lease-only behind it if you need it.",
				"--datastore=%s=lun:%s", name, rest)
		}
	}
	if where == "" || !lunpath.IsURL(where) && (!filepath.IsAbs(where) || filepath.Clean(where) != where) {
		return l, fault.New(fault.Invalid, "Give the plain absolute path of a device or file, or an iscsi:// URL.", "datastore %s: %q names no LUN", name, where)
	}
	return l, host.CheckDatastoreName(name)
}

// readCredentials gives LUNs what the file has for them. An empty path: nothing.
func readCredentials(path string, luns []LUN) error {
	if path == "" {
		return nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fault.Wrap(err, "read the credentials of LUNs")
	}
	var all map[string]lunpath.Credentials
	if err := json.Unmarshal(text, &all); err != nil { // whose text has no secret
		return fault.New(fault.Invalid, "Write a JSON object with an entry for each datastore.", "the credentials of LUNs in %s: %w", path, err)
	}
	for i, l := range luns {
		luns[i].Credentials = all[l.Name]
	}
	return nil
}

// distinct refuses a name that two datastores have; those of directories alone are host/local's to check.
func distinct(list []local.DatastoreConfig, luns []LUN) error {
	seen := map[string]bool{}
	for _, d := range list {
		seen[d.Name] = true
	}
	for _, l := range luns {
		if seen[l.Name] {
			return fault.New(fault.Invalid, "Give every datastore a name of its own.", "datastore %s is given twice", l.Name)
		}
		seen[l.Name] = true
	}
	return nil
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
