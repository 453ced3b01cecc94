package vmdkctl

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// RecordFile marks the directory of a volume (package datastore).
const recordFile = "record.json"

// Found is the disk that an argument names.
type found struct {
	Dir    fsx.Dir // holds every file of the disk
	Path   string  // of Dir, as the person wrote it
	Names  []string
	Volume *known // nil for a disk that is just files
	// Devices are what --device names.
	Devices map[string]string
	// IgnoreCID is --ignore-cid.
	IgnoreCID bool
	// Links of the manifest, as many as Names; nil for a disk that is just files.
	Links []datastore.Link
}

// Known is the datastore's knowledge about a disk.
type known struct {
	Record   datastore.Record
	Manifest datastore.Manifest
}

func (f *found) Close() { _ = f.Dir.Close() } // a directory descriptor holds nothing that could be lost

// Head is the name of the topmost link's descriptor.
func (f *found) Head() string { return f.Names[len(f.Names)-1] }

// Options opens the link with the number read-only; what the manifest knows about it is compared.
func (f *found) options(link int) vmdk.Options {
	if f.Links == nil {
		return vmdk.Options{Devices: f.Devices}
	}
	return vmdk.Options{Type: vmdk.Type(f.Links[link].Type), ExtentNames: f.Links[link].Extents}
}

// Find turns an argument into a disk: with --datastore an id or name, else the path of a descriptor, of a single-file disk, or of
// a volume's directory. It locks nothing and changes nothing.
func (a *app) find(arg string) (*found, error) {
	if a.datastore != "" {
		return findOnDatastore(a.datastore, arg)
	}
	info, err := os.Stat(arg)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "Give the path of a .vmdk file, or --datastore DIR and the id or name of a volume.",
			"%s does not exist", arg)
	}
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return findVolume(arg, "")
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(arg), recordFile)); err == nil {
		return findVolume(filepath.Dir(arg), filepath.Base(arg))
	}
	return a.findFile(arg)
}

// FindOnDatastore finds a volume by its id, or else by its name.
func findOnDatastore(root, idOrName string) (*found, error) {
	if !isDatastore(root) {
		return nil, noDatastore(root)
	}
	id := idOrName
	if !host.ValidDiskID(id) {
		id = host.DiskID(idOrName)
	}
	path := filepath.Join(root, "volumes", id)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, fault.New(fault.NotFound, "`ls "+filepath.Join(root, "volumes")+"` shows the ids, the record.json in each has the name.",
			"datastore %s has no disk with the id or name %q", root, idOrName)
	}
	return findVolume(path, "")
}

func noDatastore(root string) error {
	return fault.New(fault.NotFound, "Give the directory that has .vmdk-csi, names and volumes in it; check that it is mounted.",
		"%s holds no datastore", root)
}

// FindVolume opens the volume in the directory path, up to the link link ("" is the head).
func findVolume(path, link string) (*found, error) {
	if _, err := os.Stat(filepath.Join(path, recordFile)); err != nil {
		return nil, fault.New(fault.Invalid, "Name the .vmdk file in it.", "%s is a directory, and not that of a volume", path)
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	root := filepath.Dir(filepath.Dir(abs))
	if !isDatastore(root) || filepath.Base(filepath.Dir(abs)) != "volumes" {
		return nil, fault.New(fault.Invalid, "Move the .vmdk files into a directory of their own to use them as plain files.",
			"%s has a volume's record but is not in the volumes directory of a datastore", path)
	}
	v, err := readVolume(root, filepath.Base(abs))
	if err != nil {
		return nil, err
	}
	d, err := fsx.OpenRoot(path)
	if err != nil {
		return nil, err
	}
	f := &found{Dir: d, Path: path, Volume: v}
	for _, l := range v.Manifest.Links {
		f.Names = append(f.Names, l.Descriptor)
		f.Links = append(f.Links, l)
		if l.Descriptor == link {
			return f, nil
		}
	}
	if link == "" && len(f.Names) > 0 {
		return f, nil
	}
	f.Close()
	if link == "" {
		return nil, fault.New(fault.Precondition, "", "the disk %s is being deleted", v.Record.Name)
	}
	return nil, fault.New(fault.Invalid, "Name one of "+strings.Join(append(f.Names, "the directory"), ", ")+".",
		"%s is no link of this disk's chain", link)
}

// ReadVolume reads record and manifest.
func readVolume(root, id string) (*known, error) {
	s, err := datastore.OpenPath(root, datastore.Options{})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return readVolumeOn(s, id)
}

func readVolumeOn(s *datastore.Datastore, id string) (*known, error) {
	v, err := s.OpenVolume(id)
	if err != nil {
		return nil, err
	}
	defer v.Close()
	r, err := v.Record()
	if err != nil {
		return nil, err
	}
	m, ok, err := v.Latest()
	if err == nil && !ok {
		err = fault.New(fault.Precondition, "Ask for the same disk again, or delete it.", "the disk %s was never finished: it has no manifest", r.Name)
	}
	if err != nil {
		return nil, err
	}
	return &known{Record: r, Manifest: m}, nil
}

// FindFile follows a descriptor's parents, in its own directory only.
func (a *app) findFile(path string) (*found, error) {
	f, broken, err := a.findFileBroken(path)
	if err == nil && broken != nil {
		f.Close()
		return nil, broken
	}
	return f, err
}

// FindBroken is find for check: it returns as many links as there are, and why there are no more.
func (a *app) findBroken(arg string) (f *found, broken, err error) {
	if a.datastore == "" {
		info, serr := os.Stat(arg)
		_, rerr := os.Stat(filepath.Join(filepath.Dir(arg), recordFile))
		if serr == nil && !info.IsDir() && rerr != nil {
			return a.findFileBroken(arg)
		}
	}
	f, err = a.findPoint(arg)
	return f, nil, err
}

func (a *app) findFileBroken(path string) (f *found, broken, err error) {
	d, err := fsx.OpenRoot(filepath.Dir(path))
	if err != nil {
		return nil, nil, err
	}
	f = &found{Dir: d, Path: filepath.Dir(path), Devices: a.devices, IgnoreCID: a.ignoreCID}
	refs, broken := chain.ResolveOn(d, filepath.Base(path), a.devices)
	for _, r := range refs {
		f.Names = append(f.Names, r.Name)
	}
	if len(f.Names) == 0 {
		f.Names = []string{filepath.Base(path)} // for check, which says what is wrong with it
	}
	return f, broken, nil
}
