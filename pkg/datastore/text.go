package datastore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// Version of the layout and of every file in it.
const Version = 1

// Bounds of the files, so that a damaged or hostile file cannot fill the memory. A manifest of a 62 TiB disk in
// extents of 4064 MiB is about 700 KiB.
const (
	maxRecord   = 16 << 10
	maxManifest = 4 << 20
)

const (
	sumPrefix = "sha256 "
	sumLine   = len(sumPrefix) + 2*sha256.Size + 1
)

// encode is the text of v: indented JSON, then the checksum line.
func encode(v any, limit int) ([]byte, error) {
	body, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, err
	}
	body = append(body, '\n')
	sum := sha256.Sum256(body)
	text := append(body, sumPrefix+hex.EncodeToString(sum[:])+"\n"...)
	if len(text) > limit {
		return nil, fault.New(fault.Exhausted, "", "%d bytes of %T exceed the limit of %d", len(text), v, limit)
	}
	return text, nil
}

// decode is strict: the checksum must be right, the version known, every field known, nothing may follow.
func decode(text []byte, v any) error {
	if len(text) < sumLine || text[len(text)-1] != '\n' {
		return errors.New("it is too short or cut off")
	}
	body, line := text[:len(text)-sumLine], text[len(text)-sumLine:]
	sum := sha256.Sum256(body)
	if string(line) != sumPrefix+hex.EncodeToString(sum[:])+"\n" {
		return errors.New("its checksum is wrong")
	}
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(body, &head); err != nil {
		return err
	}
	if head.Version != Version {
		return fault.New(fault.Unsupported, "Use a release of vmdk-csi that knows this version.",
			"it has version %d; this build knows version %d", head.Version, Version)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the JSON object")
	}
	return nil
}

// readText reads and decodes a file of d. Kinds: NotFound, Damaged, Unsupported (version), those of I/O.
func readText(d fsx.Dir, name string, limit int, v any) error {
	text, err := readBounded(d, name, limit)
	if err != nil {
		return err
	}
	err = decode(text, v)
	if err == nil || errors.Is(err, fault.Unsupported) {
		return fault.Wrap(err, "%s", name)
	}
	return damaged(name, err)
}

func readBounded(d fsx.Dir, name string, limit int) ([]byte, error) {
	f, err := d.Open(name, fsx.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	// One byte more than allowed: the size in the inode is not trusted, the read is bounded by itself.
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size > int64(limit) {
		return nil, damaged(name, fault.New(fault.Damaged, "", "%d bytes exceed the limit of %d", info.Size, limit))
	}
	text := make([]byte, info.Size)
	n, err := f.ReadAt(text, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return text[:n], nil
}

func damaged(name string, err error) error {
	return fault.New(fault.Damaged, "Restore the file from a backup, or run `vmdkctl check` on the disk to see what can be saved.",
		"%s is damaged: %v", name, err)
}
