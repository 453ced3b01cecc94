package vmdkctl

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/wire"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

// hostdSocket is where a node's hostd listens.
const hostdSocket = "/run/vmdk-csi/hostd.sock"

// Reached is what a host can do with a datastore.
type reached struct {
	Datastore  string               `json:"datastore"`
	Kind       host.DatastoreKind   `json:"kind,omitempty"`
	Host       string               `json:"host,omitempty"` // "": this machine, as vmdkctl sees it
	Transports []host.TransportView `json:"transports"`
}

func (a *app) transportsCommand() *cobra.Command {
	var socket string
	c := &cobra.Command{
		Use:   "transports [DATASTORE...]",
		Short: "Show by which transports this host reaches datastores, and why not by the others",
		Long: `Show by which transports this host reaches the disks of datastores, and why not by the others, and what to do about it:

  san     blocks of the LUN, which the host reads and writes itself
  hotadd  the files in a directory, which the host opens itself
  nbd     over the network, from the host that has the LUN's store open, or from one that reaches the directory

A DATASTORE is a name of the host's vmdk-hostd, which is asked through its socket; none means all that it has. A path or an
iscsi:// address is looked at by vmdkctl itself, without vmdk-hostd: what it says of a directory or a LUN is what a
vmdk-hostd with the same rights would find. Changes nothing and takes no lock.`,
		Example: "  vmdkctl transports\n  vmdkctl transports gold -o json\n  vmdkctl transports /dev/disk/by-id/wwn-0x600140512345 /srv/vmdk",
		RunE: func(c *cobra.Command, args []string) error {
			all, err := transportsOf(c.Context(), socket, args)
			if err != nil {
				return err
			}
			return a.format.Write(a.out, all, func(w io.Writer) error { return writeTransports(w, all) })
		},
	}
	c.Flags().StringVar(&socket, "socket", hostdSocket, "socket of the host's vmdk-hostd")
	must(c.MarkFlagFilename("socket"))
	return c
}

// transportsOf is what is known of the datastores that args name, in their order.
func transportsOf(ctx context.Context, socket string, args []string) ([]reached, error) {
	out := []reached{}
	var served []host.Datastore
	isPath := func(arg string) bool { return strings.ContainsRune(arg, '/') }
	if len(args) == 0 || slices.ContainsFunc(args, func(arg string) bool { return !isPath(arg) }) {
		hostd, err := wire.Dial(ctx, socket)
		if err != nil {
			return nil, askHostd(err, socket)
		}
		defer hostd.Close()
		if served, err = hostd.Datastores(ctx); err != nil {
			return nil, askHostd(err, socket)
		}
	}
	if len(args) == 0 {
		for _, d := range served {
			out = append(out, ofHostd(d))
		}
	}
	for _, arg := range args {
		if isPath(arg) {
			out = append(out, look(ctx, arg))
			continue
		}
		i := slices.IndexFunc(served, func(d host.Datastore) bool { return d.Name == arg })
		if i < 0 {
			return nil, fault.New(fault.NotFound, "`vmdkctl transports` shows those that it has; a path is written with a slash.",
				"the vmdk-hostd at %s has no datastore %q", socket, arg)
		}
		out = append(out, ofHostd(served[i]))
	}
	return out, nil
}

func askHostd(err error, socket string) error {
	f := fault.From(err)
	return fault.New(f.Kind, "Start vmdk-hostd or name its --socket, or give the path of a directory or a LUN, which needs none.",
		"ask the vmdk-hostd at %s: %s", socket, f.Message)
}

func ofHostd(d host.Datastore) reached {
	r := reached{Datastore: d.Name, Kind: d.Kind, Transports: []host.TransportView{}}
	for _, h := range d.Hosts {
		r.Host, r.Transports = h.Host, append(r.Transports, h.Transports...)
	}
	return r
}

// look is what this machine can do with a directory or a LUN.
func look(ctx context.Context, where string) reached {
	if st, err := os.Stat(where); !lunpath.IsURL(where) && err == nil && st.IsDir() {
		return lookAtDirectory(where)
	}
	return lookAtLUN(ctx, where)
}

func lookAtDirectory(path string) reached {
	hotAdd := host.TransportView{Transport: transport.NameHotAdd}
	switch err := kernelDevices(); {
	case err != nil:
		hotAdd.Reason = fault.From(err)
	case !isDatastore(path):
		// vmdk-hostd would make it one.
		hotAdd.Usable, hotAdd.Detail = true, "the directory "+path+", which holds no datastore yet"
	default:
		hotAdd.Usable, hotAdd.Detail = true, "the files in "+path
	}
	return reached{Datastore: path, Kind: host.Directory, Transports: []host.TransportView{
		{Transport: transport.NameSAN, Reason: transport.NoSANOfDirectory()}, hotAdd,
		{Transport: transport.NameNBD, Reason: transport.NoNBDOfDirectory()},
	}}
}

// kernelDevices says what the kernel lacks to show a disk as a device, which every transport needs.
func kernelDevices() error {
	for _, path := range []string{"/dev/fuse", "/dev/loop-control"} {
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			return fault.New(fault.Unsupported, "Load the kernel's modules fuse and loop, and run it as root.", "no disk can be made a device here: %w", err)
		}
		f.Close()
	}
	return nil
}

func lookAtLUN(ctx context.Context, where string) reached {
	san := host.TransportView{Transport: transport.NameSAN}
	nbd := host.TransportView{Transport: transport.NameNBD, Reason: fault.New(fault.Unsupported,
		"Ask the host's vmdk-hostd: vmdkctl transports NAME.", "only a vmdk-hostd has the certificates to ask a metadata server")}
	lun, id, err := lunpath.Open(ctx, where, lunpath.Options{})
	if err == nil {
		defer lun.Close()
		if kernel := kernelDevices(); kernel != nil {
			err = kernel
		}
	}
	if san.Reason = fault.From(err); err == nil {
		san.Usable, san.Detail = true, cli.FormatSize(id.Bytes)+", store "+id.Store+"; "+owner(lun)
	}
	return reached{Datastore: where, Kind: host.LUN, Transports: []host.TransportView{san,
		{Transport: transport.NameHotAdd, Reason: transport.NoHotAddOfLUN()}, nbd}}
}

// owner is who serves the store, as far as the LUN itself says.
func owner(lun fsx.File) string {
	switch o, err := lunlease.Peek(lun); {
	case err != nil:
		return fault.From(err).Message
	case o.Released:
		return "no host owns it now; the last was " + o.Host
	default:
		return "owned by " + o.Host + " at " + o.Address
	}
}

func writeTransports(w io.Writer, all []reached) error {
	if len(all) == 0 {
		_, err := io.WriteString(w, "The host has no datastore.\n")
		return err
	}
	t := cli.NewTable("DATASTORE", "KIND", "TRANSPORT", "USABLE", "BY, OR WHY NOT")
	for _, r := range all {
		for _, v := range r.Transports {
			usable, why := "yes", v.Detail
			if !v.Usable {
				usable = "no"
				if v.Reason != nil {
					why = v.Reason.Error()
				}
			}
			t.Row(r.Datastore, string(r.Kind), v.Transport, usable, why)
		}
	}
	return t.Write(w)
}
