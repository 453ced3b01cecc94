package vmdkctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/nbd"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Service is what serve was asked for.
type service struct {
	unix, listen       string
	cert, key, ca      string
	readOnly           bool
	name, changedSince string
}

func (a *app) serveCommand() *cobra.Command {
	var s service
	c := &cobra.Command{
		Use:   "serve DISK",
		Short: "Serve a disk, or a snapshot, to NBD clients",
		Long: `Serve a disk to programs that speak NBD (qemu, nbdcopy, the kernel's nbd-client) until the command is ended by SIGTERM or
SIGINT; then what was written is made durable. The disk is locked meanwhile, as by qemu. With --read-only nothing is locked and
nothing written, and a snapshot of a volume can be served, also of one that is attached; volumes themselves are served read-only,
because it is their host that writes them.

On a unix socket whoever may open the socket may use the disk. On the network TLS 1.3 with certificates on both sides is forced: a
client whose certificate is not of --tls-ca gets nothing.

Clients can ask for the holes (base:allocation) and, with --changed-since, for what was written since a link or snapshot
(vmdk:changed:LINK), which is what an incremental backup copies. docs/nbd.md has examples.`,
		Example: "  vmdkctl serve --unix /run/disk.sock disk.vmdk\n" +
			"  vmdkctl serve --listen :10809 --tls-cert host.crt --tls-key host.key --tls-ca clients.crt disk.vmdk\n" +
			"  vmdkctl serve --unix /run/backup.sock --datastore /srv/disks --changed-since monday tuesday",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePoints(1),
		RunE:              func(c *cobra.Command, args []string) error { return a.serve(c.Context(), &s, args[0]) },
	}
	f := c.Flags()
	f.StringVar(&s.unix, "unix", "", "serve on the unix socket PATH")
	f.StringVar(&s.listen, "listen", "", "serve on the network address HOST:PORT, with TLS")
	f.StringVar(&s.cert, "tls-cert", "", "the server's certificate, and those between it and its authority (PEM)")
	f.StringVar(&s.key, "tls-key", "", "the key of --tls-cert (PEM)")
	f.StringVar(&s.ca, "tls-ca", "", "the authorities of clients' certificates (PEM)")
	f.BoolVar(&s.readOnly, "read-only", false, "refuse writes, lock nothing")
	f.StringVar(&s.name, "name", "", "name of the export (default: the one that a client gets who names none)")
	f.StringVar(&s.changedSince, "changed-since", "", "link, or with --datastore snapshot, of the disk: tell what was written after it")
	c.MarkFlagsOneRequired("unix", "listen")
	return c
}

func (a *app) serve(ctx context.Context, s *service, arg string) (err error) {
	f, err := a.findPoint(arg)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Volume != nil && !s.readOnly {
		return fault.New(fault.Unsupported, "Serve it with --read-only, or attach it and use the device.", "%s is a volume of a datastore", arg)
	}
	c, err := chain.Open(f.Dir, f.refs(), chain.Options{ReadOnly: s.readOnly, Locks: !s.readOnly, Devices: f.Devices, IgnoreCID: f.IgnoreCID})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	e, err := a.exportOf(s, f, c)
	if err != nil {
		return err
	}
	o := nbd.ServerOptions{Log: slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelWarn}))}
	if s.listen != "" {
		if o.TLS, err = nbd.ServerTLS(s.cert, s.key, s.ca); err != nil {
			return err
		}
	}
	server := nbd.NewServer(&single{s.name, e}, o)
	if err := a.serveOn(ctx, s, server); err != nil {
		return err
	}
	if s.readOnly {
		return nil
	}
	return c.Flush()
}

// StopIn is how long clients may take to read their last answers.
const stopIn = 10 * time.Second

// ServeOn listens until ctx ends.
func (a *app) serveOn(ctx context.Context, s *service, server *nbd.Server) error {
	listeners, err := s.open()
	if err != nil {
		return err
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		fmt.Fprintf(a.err, "serving on %s\n", nbdURI(l.Addr(), s.name))
		go func() { failed <- server.Serve(l) }()
	}
	waiting := len(listeners)
	select {
	case <-ctx.Done():
	case err = <-failed:
		waiting--
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopIn)
	defer cancel()
	err = errors.Join(err, server.Close(end))
	for range waiting {
		err = errors.Join(err, <-failed)
	}
	return err
}

func nbdURI(addr net.Addr, name string) string {
	if addr.Network() == "unix" {
		return fmt.Sprintf("nbd+unix:///%s?socket=%s", name, addr)
	}
	return fmt.Sprintf("nbds://%s/%s", addr, name)
}

// Open makes the sockets.
func (s *service) open() (all []net.Listener, err error) {
	defer func() {
		if err != nil {
			for _, l := range all {
				l.Close()
			}
			all = nil
		}
	}()
	if s.unix != "" {
		if err := removeStale(s.unix); err != nil {
			return all, err
		}
		old := unix.Umask(0o177) // only who serves may connect, until he says otherwise
		l, err := net.Listen("unix", s.unix)
		unix.Umask(old)
		if err != nil {
			return all, fault.New(fault.Invalid, "Choose a path in a directory that exists, of at most 107 bytes.", "%w", err)
		}
		all = append(all, l)
	}
	if s.listen != "" {
		l, err := net.Listen("tcp", s.listen)
		if err != nil {
			return all, fault.New(fault.Invalid, "Use an address of this machine and a port that is free.", "%w", err)
		}
		all = append(all, l)
	}
	return all, nil
}

// RemoveStale removes a socket that nobody serves any more: its server was killed.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSocket == 0 {
		return fault.New(fault.Exists, "Choose another path.", "%s exists and is no socket", path)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return fault.New(fault.InUse, "Choose another path, or end the other program.", "somebody serves on %s already", path)
	}
	return os.Remove(path)
}

// Single has one export.
type single struct {
	name   string
	export *nbd.Export
}

// Resolve implements nbd.Resolver.
func (s *single) Resolve(_ context.Context, name string, _ nbd.Peer) (*nbd.Export, error) {
	if name != s.name && name != "" {
		return nil, fault.New(fault.NotFound, "", "there is no export %q", cli.Printable(name))
	}
	return s.export, nil
}

// List implements nbd.Lister.
func (s *single) List(context.Context, nbd.Peer) ([]string, error) { return []string{s.name}, nil }

// ExportOf serves c.
func (a *app) exportOf(s *service, f *found, c *chain.Chain) (*nbd.Export, error) {
	e := &nbd.Export{Device: c, ReadOnly: s.readOnly, MultiConn: true, PreferredBlock: 64 << 10,
		Description: filepath.Base(f.Path) + "/" + f.Head(), Allocation: allocation(c)}
	if s.changedSince == "" {
		return e, nil
	}
	link, err := a.linkOf(f, s.changedSince)
	if err != nil {
		return nil, err
	}
	e.Contexts = []nbd.Context{{Name: "vmdk:changed:" + s.changedSince, Status: changedAbove(c, link)}}
	return e, nil
}
