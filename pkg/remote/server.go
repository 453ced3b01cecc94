package remote

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// ServerConfig is what a Server is made of.
type ServerConfig struct {
	// Lookup finds a datastore that this host serves. Kinds: Unavailable (it does not; the text says who does, if that is known).
	Lookup func(datastore string) (Datastore, error)
	// TLS must ask for clients' certificates and verify them; their common name is the node.
	TLS *tls.Config
	// NBDAddress is told to clients; with a port only (":10809") it is at the host where they reached control.
	NBDAddress string
	Log        *slog.Logger
}

// Server is the end of control and NBD that has the disks.
type Server struct{ c ServerConfig }

// NewServer makes a server; Serve runs it.
func NewServer(c ServerConfig) *Server { return &Server{c} }

// Serve answers until ctx ends; all connections are closed then.
func (s *Server) Serve(_ context.Context, control, nbd net.Listener) error {
	control.Close()
	nbd.Close()
	return fault.New(fault.Unsupported, "", "remote: serve")
}
