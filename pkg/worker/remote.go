package worker

import "github.com/vmdk-csi/vmdk-csi/pkg/fault"

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
}

// SetRemote changes by what the disk finds and convinces servers: Peers, Certificate, Key, CA, ServerName. It is what the current
// worker uses from now on, and every later one.
func (h *Handle) SetRemote(RemoteSpec) error {
	return fault.New(fault.Unsupported, "", "disk %s is not remote", h.spec.ID)
}
