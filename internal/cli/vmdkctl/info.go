package vmdkctl

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
)

// LinkInfo is what one link says about itself, and what its files are.
type linkInfo struct {
	File      string       `json:"file"`
	Type      string       `json:"type"`
	Embedded  bool         `json:"embeddedDescriptor"`
	Capacity  int64        `json:"capacity"`  // bytes
	Allocated int64        `json:"allocated"` // bytes that its files use
	CID       string       `json:"cid"`
	ParentCID string       `json:"parentCID"`
	Parent    string       `json:"parent,omitempty"` // hint
	UUID      string       `json:"uuid,omitempty"`
	Adapter   string       `json:"adapter,omitempty"`
	Geometry  string       `json:"geometry,omitempty"` // cylinders/heads/sectors
	Hardware  string       `json:"virtualHWVersion,omitempty"`
	Unclean   bool         `json:"unclean"`
	Live      bool         `json:"live"` // somebody on this machine writes it now
	Extents   []extentInfo `json:"extents"`
	Volume    *volumeInfo  `json:"volume,omitempty"`
}

type extentInfo struct {
	File      string `json:"file,omitempty"`
	Kind      string `json:"kind"`
	Start     int64  `json:"start"`               // bytes of the disk
	Length    int64  `json:"length"`              // bytes of the disk
	Grain     int64  `json:"grain"`               // bytes, 0 without grains
	Size      int64  `json:"size"`                // bytes of the file
	Allocated int64  `json:"allocated"`           // bytes that the file uses
	Links     uint64 `json:"hardLinks,omitempty"` // names of the file
	live      bool
}

type volumeInfo struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Format   string `json:"format"`
	Epoch    int64  `json:"epoch"`
	Seq      int64  `json:"seq"`
	Owner    string `json:"owner,omitempty"`
	Released bool   `json:"released"`
	// Snapshots are the names of its snapshots, oldest first.
	Snapshots []string `json:"snapshots,omitempty"`
}

func (a *app) infoCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "info DISK",
		Short: "Show what a disk is",
		Long: `Show what a disk's head is: type, capacity, what it uses, content IDs, identity, extents, and for a volume of a
datastore who owns it. Takes no lock, so that a live disk can be looked at.`,
		Example:           "  vmdkctl info disk.vmdk\n  vmdkctl info --datastore /var/lib/vmdk-csi/default pvc-4711 -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePoints(1),
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := a.findPoint(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := describe(f, len(f.Names)-1)
			if err != nil {
				return err
			}
			return a.format.Write(a.out, info, func(w io.Writer) error { return writeInfo(w, info, len(f.Names)) })
		},
	}
}

// Describe reads one link of a disk.
func describe(f *found, link int) (info *linkInfo, err error) {
	l, err := vmdk.Open(f.Dir, f.Names[link], f.options(link))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	d := l.Descriptor()
	info = &linkInfo{
		File: filepath.Join(f.Path, l.Name), Type: string(d.Type()), Embedded: l.Embedded(), Capacity: l.Size(),
		CID: d.CID().String(), ParentCID: d.ParentCID().String(), Parent: d.ParentHint(), Unclean: l.Unclean(),
	}
	if u, ok := d.UUID(); ok {
		info.UUID = u.String()
	}
	info.Adapter, _ = d.Get("ddb.adapterType")
	info.Hardware, _ = d.Get("ddb.virtualHWVersion")
	c, _ := d.Get("ddb.geometry.cylinders")
	h, _ := d.Get("ddb.geometry.heads")
	s, _ := d.Get("ddb.geometry.sectors")
	if c != "" && h != "" && s != "" {
		info.Geometry = c + "/" + h + "/" + s
	}
	if err := info.readFiles(f, l); err != nil {
		return nil, err
	}
	if v := f.Volume; v != nil && link == len(v.Manifest.Links)-1 {
		m := v.Manifest
		info.Volume = &volumeInfo{ID: v.Record.ID, Name: v.Record.Name, Format: v.Record.Format,
			Epoch: m.Epoch, Seq: m.Seq, Owner: m.Owner.Host, Released: m.Released}
		for _, p := range m.Snapshots {
			info.Volume.Snapshots = append(info.Volume.Snapshots, p.Name)
		}
	}
	return info, nil
}

// ReadFiles adds the extents, and what the files use: names in the directory are what counts, not what is open.
func (info *linkInfo) readFiles(f *found, l *vmdk.Link) error {
	live, err := writers()
	if err != nil {
		live = nil // no /proc: who writes is not known here
	}
	if !l.Embedded() {
		st, err := f.Dir.Stat(l.Name)
		if err != nil {
			return err
		}
		info.Allocated += st.Allocated
	}
	for _, e := range l.Extents() {
		x := extentInfo{File: e.Name, Kind: e.Kind.String(), Start: e.Start, Length: e.Len, Grain: e.GrainBytes()}
		if _, device := f.Devices[e.Name]; e.Name != "" && e.Kind != vmdk.Zero && !device {
			st, err := f.Dir.Stat(e.Name)
			if err != nil {
				return err
			}
			x.Size, x.Allocated, x.Links, x.live = st.Size, st.Allocated, st.Links, live[lockKey(st)]
		}
		info.Allocated += x.Allocated
		info.Live = info.Live || x.live
		info.Extents = append(info.Extents, x)
	}
	return nil
}

func writeInfo(w io.Writer, i *linkInfo, links int) error {
	var f cli.Fields
	f.Add("File", i.File)
	if v := i.Volume; v != nil {
		f.Add("Volume", v.Name)
		f.Add("Id", v.ID)
		f.Add("Owner", v.owner())
		f.Add("Snapshots", strings.Join(v.Snapshots, ", "))
	}
	place := "stand-alone descriptor"
	if i.Embedded {
		place = "descriptor inside"
	}
	f.Add("Type", i.Type+", "+place)
	f.Add("Capacity", fmt.Sprintf("%s (%d bytes)", cli.FormatSize(i.Capacity), i.Capacity))
	f.Add("Allocated", fmt.Sprintf("%s, %s of the capacity", cli.FormatSize(i.Allocated), cli.Percent(i.Allocated, i.Capacity)))
	f.Add("CID", i.CID)
	if i.ParentCID != vmdk.NoParent.String() {
		f.Add("Parent", fmt.Sprintf("%s, CID %s (%d links in all, see vmdkctl chain)", i.Parent, i.ParentCID, links))
	}
	f.Add("UUID", i.UUID)
	f.Add("Adapter", i.Adapter)
	f.Add("Geometry", i.Geometry)
	f.Add("State", i.state())
	if err := f.Write(w); err != nil {
		return err
	}
	fmt.Fprintln(w)
	t := cli.NewTable("EXTENT", "KIND", ">CAPACITY", ">GRAIN", ">FILE SIZE", ">ALLOCATED")
	for _, x := range i.Extents {
		grain := ""
		if x.Grain > 0 {
			grain = cli.FormatSize(x.Grain)
		}
		t.Row(x.File, x.Kind, cli.FormatSize(x.Length), grain, cli.FormatSize(x.Size), cli.FormatSize(x.Allocated))
	}
	return t.Write(w)
}

func (info *linkInfo) state() string {
	switch {
	case info.Live:
		return "live: a process on this machine writes it"
	case info.Volume != nil && !info.Volume.Released:
		return "held by host " + info.Volume.Owner + ", not released"
	case info.Unclean:
		return "not in use, but it was not closed cleanly: run vmdkctl check"
	}
	return "not in use"
}

func (v *volumeInfo) owner() string {
	if v.Owner == "" {
		return fmt.Sprintf("none yet (epoch %d)", v.Epoch)
	}
	what := "holds it"
	if v.Released {
		what = "released it"
	}
	return fmt.Sprintf("%s %s (epoch %d.%d)", v.Owner, what, v.Epoch, v.Seq)
}
