package local

import (
	"slices"
	"sync"

	"github.com/vmdk-csi/vmdk-csi/internal/statefile"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// claims is the file of claims: disk id to claims.
type claims struct {
	mu   sync.Mutex
	path string
}

func (c *claims) all() (map[string][]host.Claim, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return statefile.Load[map[string][]host.Claim](c.path)
}

// of are the claims of one disk.
func (c *claims) of(id string) ([]host.Claim, error) {
	m, err := c.all()
	return m[id], err
}

// change makes f of all claims what the file holds, unless f fails or changes nothing.
func (c *claims) change(id string, f func(all map[string][]host.Claim) ([]host.Claim, error)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m, err := statefile.Load[map[string][]host.Claim](c.path)
	if err != nil {
		return err
	}
	next, err := f(m)
	if err != nil || slices.Equal(next, m[id]) {
		return err
	}
	if m[id] = next; len(next) == 0 {
		delete(m, id)
	}
	return statefile.Save(c.path, m)
}

// identities is the file of the datastores that were seen: name to UUID.
type identities struct {
	mu   sync.Mutex
	path string
}

func (i *identities) get(name string) (string, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	m, err := statefile.Load[map[string]string](i.path)
	return m[name], err
}

func (i *identities) set(name, uuid string) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	m, err := statefile.Load[map[string]string](i.path)
	if err != nil {
		return err
	}
	m[name] = uuid
	return statefile.Save(i.path, m)
}
