package worker

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/remote"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
)

// RemoteSpec is a disk that another host has open (pkg/remote).
type RemoteSpec struct {
	Datastore string `json:"datastore"`
	Volume    string `json:"volume"`
	Node      string `json:"node"`
	// Order of transports that are asked for, as remote.SAN and remote.NBD.
	Order []string `json:"order"`
	// Peers are host:port of every host that may serve the datastore. Names are resolved when they are used.
	Peers []string `json:"peers"`
	// Certificate, Key and CA are PEM. ServerName is what servers prove to be, "" the host of their address.
	Certificate []byte `json:"certificate"`
	Key         []byte `json:"key"`
	CA          []byte `json:"ca"`
	ServerName  string `json:"serverName,omitempty"`
	// LUNs are the paths by which this node reaches LUNs; none: no SAN here.
	LUNs []string `json:"luns,omitempty"`
	// Credentials are for LUNs that are iscsi:// URLs.
	Credentials lunpath.Credentials `json:"credentials,omitzero"`
}

// remoteTime bounds how long a worker may take to hear of other peers.
const remoteTime = 10 * time.Second

// SetRemote changes by what the disk finds and convinces servers: Peers, Certificate and Key for the current worker, everything for
// every later one. A worker that is just being started, or is busy, hears of it when it is told the next time.
func (h *Handle) SetRemote(r RemoteSpec) error {
	h.mu.Lock()
	remote := h.spec.Remote != nil
	if remote {
		h.spec.Remote = &r
	}
	h.mu.Unlock()
	if !remote {
		return fault.New(fault.Unsupported, "", "disk %s is not remote", h.spec.ID)
	}
	ctx, cancel := context.WithTimeout(context.Background(), remoteTime)
	defer cancel()
	err := h.call(ctx, opRemote, r, nil)
	if errors.Is(err, fault.Unavailable) { // the next one is told when it starts
		return nil
	}
	return err
}

// reached keeps how the worker says that its disk is reached.
func (h *Handle) reached(fr frame) {
	var s remote.State
	if err := json.Unmarshal(fr.Body, &s); err != nil {
		h.s.o.Log.Error("read from worker", "disk", h.spec.ID, "error", err)
		return
	}
	h.set(func(st *State) { st.Transport, st.Skipped = s.Transport, s.Skipped })
}

// remoteDisk is what a worker of a remote disk knows of servers.
type remoteDisk struct {
	mu    sync.Mutex
	peers []string
	cert  *tls.Certificate
}

func (r *remoteDisk) set(s *RemoteSpec) error {
	cert, err := tls.X509KeyPair(s.Certificate, s.Key)
	if err != nil {
		return fault.New(fault.Invalid, "Give the worker a certificate and its key.", "the certificate of node %s: %w", s.Node, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.peers, r.cert = slices.Clone(s.Peers), &cert
	return nil
}

func (r *remoteDisk) change(fr frame) error {
	if r == nil {
		return fault.New(fault.Unsupported, "", "the disk is not remote")
	}
	var s RemoteSpec
	if err := json.Unmarshal(fr.Body, &s); err != nil {
		return err
	}
	return r.set(&s)
}

// openRemote is the Opener of a remote disk. Its server has everything that a predecessor of this worker acknowledged.
func (w *process) openRemote(ctx context.Context, req OpenRequest) (Disk, error) {
	s := w.cfg.Remote
	r := &remoteDisk{}
	if err := r.set(s); err != nil {
		return nil, err
	}
	w.remote = r
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(s.CA) {
		return nil, fault.New(fault.Invalid, "Give the worker the authority's certificate.", "there is no certificate of an authority")
	}
	c := remote.DiskConfig{Volume: s.Volume, ReadOnly: req.ReadOnly, Order: s.Order,
		ClientConfig: remote.ClientConfig{Datastore: s.Datastore, Node: s.Node, Log: w.p.Log,
			Peers: func(context.Context) ([]string, error) {
				r.mu.Lock()
				defer r.mu.Unlock()
				return slices.Clone(r.peers), nil
			},
			TLS: &tls.Config{RootCAs: pool, ServerName: s.ServerName, MinVersion: tls.VersionTLS13,
				GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
					r.mu.Lock()
					defer r.mu.Unlock()
					return r.cert, nil
				}}},
		Changed: func(st remote.State) { _ = w.ctl.send(evState, 0, st, nil) }, // who is gone needs none
	}
	if len(s.LUNs) > 0 {
		c.OpenLUN = w.openLUN
	}
	d, err := remote.OpenDisk(ctx, c)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// openLUN opens the first path to a LUN that leads to it.
func (w *process) openLUN(ctx context.Context, want san.LUN) (fsx.File, error) {
	var all []error
	for _, where := range w.cfg.Remote.LUNs {
		f, _, err := lunpath.Open(ctx, where, lunpath.Options{Credentials: w.cfg.Remote.Credentials, ReadWrite: true, Log: w.p.Log}.Want(want))
		if err == nil {
			return f, nil
		}
		all = append(all, err)
	}
	if len(all) == 1 {
		return nil, all[0]
	}
	return nil, errors.Join(all...)
}
