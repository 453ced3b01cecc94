package vmdkctl

import (
	"context"
	"errors"
	"io"
	"strconv"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
)

// StoreDisk is a disk of a datastore.
type storeDisk struct {
	ID        string   `json:"id"`
	Name      string   `json:"name"`
	Size      int64    `json:"size"`      // bytes
	Allocated int64    `json:"allocated"` // bytes, of all links; disks that share a link count it each
	Links     int      `json:"links"`
	Snapshots []string `json:"snapshots"` // names, oldest first
	Retired   bool     `json:"retired,omitempty"`
	Owner     string   `json:"owner,omitempty"`  // host that has it attached
	Device    string   `json:"device,omitempty"` // if vmdkctl attached it on this machine
	Reason    string   `json:"reason,omitempty"` // why it cannot be read
}

// StoreDisks are the disks of the datastore in order of id. One that cannot be read is listed with the reason.
func (a *app) storeDisks(ctx context.Context) ([]storeDisk, error) {
	s, err := openStore(a.datastore)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	ids, err := s.store.IDs()
	if err != nil {
		return nil, err
	}
	attached, err := theRunDir().all(ctx)
	if err != nil {
		return nil, err
	}
	devices := map[string]string{}
	for _, x := range attached {
		devices[x.Volume] = x.Device
	}
	out := []storeDisk{}
	for _, id := range ids {
		if !host.ValidDiskID(id) {
			continue
		}
		d, err := s.describeDisk(id)
		switch {
		case errors.Is(err, fault.NotFound), errors.Is(err, fault.Precondition):
			continue // being made or deleted
		case err != nil:
			d = storeDisk{ID: id, Snapshots: []string{}, Reason: cli.Message(fault.From(err))}
		}
		d.Device = devices[id]
		out = append(out, d)
	}
	return out, nil
}

func (s *onStore) describeDisk(id string) (storeDisk, error) {
	v, err := readVolumeOn(s.store, id)
	if err != nil {
		return storeDisk{}, err
	}
	m := v.Manifest
	if m.Deleting {
		return storeDisk{}, fault.New(fault.NotFound, "", "it is being deleted")
	}
	d := storeDisk{ID: id, Name: v.Record.Name, Size: m.Size, Links: len(m.Links), Snapshots: []string{}, Retired: m.Retired}
	if !m.Released {
		d.Owner = m.Owner.Host
	}
	for _, p := range m.Snapshots {
		d.Snapshots = append(d.Snapshots, p.Name)
	}
	vol, err := s.store.OpenVolume(id)
	if err != nil {
		return storeDisk{}, err
	}
	defer vol.Close()
	for _, l := range m.Links {
		for _, name := range append([]string{l.Descriptor}, l.Extents...) {
			if st, err := vol.Dir().Stat(name); err == nil {
				d.Allocated += st.Allocated // what is missing check tells
			}
		}
	}
	return d, nil
}

func writeDisks(w io.Writer, all []storeDisk) error {
	if len(all) == 0 {
		_, err := io.WriteString(w, "The datastore has no disks.\n")
		return err
	}
	t := cli.NewTable("DISK", ">SIZE", ">ALLOCATED", ">LINKS", ">SNAPSHOTS", "STATE", "ID")
	for _, d := range all {
		name, state := d.Name, "detached"
		switch {
		case d.Reason != "":
			state = d.Reason
		case d.Retired:
			name, state = "["+name+"]", "deleted, kept for its snapshots"
		case d.Device != "":
			state = "attached: " + d.Device
		case d.Owner != "":
			state = "attached on " + d.Owner
		}
		t.Row(name, cli.FormatSize(d.Size), cli.FormatSize(d.Allocated), strconv.Itoa(d.Links), strconv.Itoa(len(d.Snapshots)), state, d.ID)
	}
	return t.Write(w)
}
