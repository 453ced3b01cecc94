package vmdkctl

import (
	"bufio"
	"context"
	"crypto/md5"  //nolint:gosec // for those who compare with old lists
	"crypto/sha1" //nolint:gosec // as well
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// Span is a range of a disk, as the flags give it.
type byteRange struct{ offset, length string }

func (r *byteRange) flags(c *cobra.Command, length bool) {
	c.Flags().StringVar(&r.offset, "offset", "0", "first byte: 4096, 1M, 2048s (sectors), ...")
	must(c.RegisterFlagCompletionFunc("offset", cobra.NoFileCompletions))
	if length {
		c.Flags().StringVar(&r.length, "length", "", "how many bytes (default: to the end)")
		must(c.RegisterFlagCompletionFunc("length", cobra.NoFileCompletions))
	}
}

// Of is the range in a disk of the size.
func (r *byteRange) of(size int64) (off, n int64, err error) {
	if off, err = cli.ParseSize(r.offset); err != nil {
		return 0, 0, cli.Usage{Err: err}
	}
	n = size - off
	if r.length != "" {
		if n, err = cli.ParseSize(r.length); err != nil {
			return 0, 0, cli.Usage{Err: err}
		}
	}
	if off < 0 || n < 0 || off > size || n > size-off {
		return 0, 0, fault.New(fault.OutOfRange, "Stay inside.", "%d bytes from %d on are not inside the disk of %d bytes", n, off, size)
	}
	return off, n, nil
}

func (a *app) readCommand() *cobra.Command {
	var r byteRange
	c := a.edit("read DISK", "Write a part of a disk's content to standard output", `Write bytes of a disk, or of a snapshot, to standard output, as a guest would read them. Use convert for whole disks: it keeps
holes.`, "  vmdkctl read disk.vmdk --length 512 | xxd\n  vmdkctl read disk.vmdk --offset 1M --length 64K >piece", 1, nil)
	r.flags(c, true)
	c.ValidArgsFunction = a.completePoints(1)
	c.RunE = func(c *cobra.Command, args []string) error {
		src, err := a.openSource(conversion{from: args[0], fromFmt: vmdkImage})
		if err != nil {
			return err
		}
		defer src.Close()
		off, n, err := r.of(src.Size())
		if err != nil {
			return err
		}
		_, err = copyRange(c.Context(), a.out, src, off, n, nil)
		return err
	}
	return c
}

// CopyRange writes bytes of a source in order.
func copyRange(ctx context.Context, w io.Writer, src io.ReaderAt, off, n int64, progress func(int64)) (int64, error) {
	buf := make([]byte, min(copyChunk, max(n, 1)))
	for done := int64(0); done < n; {
		if err := ctx.Err(); err != nil {
			return done, err
		}
		p := buf[:min(int64(len(buf)), n-done)]
		if err := readFull(src, p, off+done); err != nil {
			return done, err
		}
		if _, err := w.Write(p); err != nil {
			return done, err
		}
		done += int64(len(p))
		if progress != nil {
			progress(int64(len(p)))
		}
	}
	return n, nil
}

func (a *app) writeCommand() *cobra.Command {
	var r byteRange
	var dryRun bool
	c := a.edit("write DISK [FILE]", "Write bytes into a disk", `Write a file, or standard input, into a disk at an offset, and make it durable. The disk must not be in use. A disk with children
loses them: they are of what it was.`, "  vmdkctl write disk.vmdk boot.img\n  printf hello | vmdkctl write disk.vmdk --offset 1M", 1, nil)
	c.Args = cobra.RangeArgs(1, 2)
	r.flags(c, false)
	dryRunFlag(c, &dryRun)
	c.RunE = func(c *cobra.Command, args []string) error {
		in := a.in
		if len(args) == 2 && args[1] != pipe {
			f, err := os.Open(args[1])
			if err != nil {
				return err
			}
			defer f.Close()
			in = f
		}
		return a.write(c.Context(), args[0], in, &r, dryRun)
	}
	return c
}

func (a *app) write(ctx context.Context, arg string, in io.Reader, r *byteRange, dryRun bool) (err error) {
	f, err := a.plainDisk(arg, "Attach it: it is a device then.")
	if err != nil {
		return err
	}
	defer f.Close()
	c, err := chain.Open(f.Dir, f.refs(), chain.Options{Locks: true, ReadOnly: dryRun, Devices: f.Devices})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	off, room, err := r.of(c.Size())
	if err != nil {
		return err
	}
	buf, at := make([]byte, copyChunk), off
	for src := bufio.NewReaderSize(in, copyChunk); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, rerr := io.ReadFull(src, buf)
		if int64(n) > off+room-at {
			return fault.New(fault.OutOfRange, "Grow the disk, or write less.", "the input goes on behind the end of the disk; %d bytes were written", at-off)
		}
		if n > 0 && dryRun {
			at += int64(n)
		} else if n > 0 {
			if _, err := c.WriteAt(buf[:n], at); err != nil {
				return err
			}
			at += int64(n)
		}
		if errors.Is(rerr, io.EOF) || errors.Is(rerr, io.ErrUnexpectedEOF) {
			break
		}
		if rerr != nil {
			return rerr
		}
	}
	if err := c.Flush(); err != nil {
		return err
	}
	return a.edited(edited{Disk: arg, Done: fmt.Sprintf("%s written at %d", count(int(at-off), "byte"), off), DryRun: dryRun})
}

var algorithms = map[string]func() hash.Hash{"sha256": sha256.New, "sha512": sha512.New, "sha1": sha1.New, "md5": md5.New}

// Checksum is what checksum answers.
type checksum struct {
	Disk      string `json:"disk"`
	Algorithm string `json:"algorithm"`
	Sum       string `json:"sum"`
	Offset    int64  `json:"offset"`
	Length    int64  `json:"length"`
}

func (a *app) checksumCommand() *cobra.Command {
	var r byteRange
	algorithm := "sha256"
	names := slices.Sorted(maps.Keys(algorithms))
	c := a.edit("checksum DISK", "Compute a checksum of a disk's content", `Compute a checksum of what a guest reads, holes as zeros: it is that of the raw image that convert makes, whatever the type of the
disk and the length of its chain.`, "  vmdkctl checksum disk.vmdk\n  vmdkctl checksum --datastore /srv/disks monday --algorithm sha512", 1, nil)
	r.flags(c, true)
	c.ValidArgsFunction = a.completePoints(1)
	c.Flags().StringVar(&algorithm, "algorithm", algorithm, list(names))
	must(c.RegisterFlagCompletionFunc("algorithm", fixed(names...)))
	c.RunE = func(c *cobra.Command, args []string) error {
		make := algorithms[algorithm]
		if make == nil {
			return cli.Usage{Err: fault.New(fault.Invalid, "Use "+list(names)+".", "unknown algorithm %q", algorithm)}
		}
		src, err := a.openSource(conversion{from: args[0], fromFmt: vmdkImage})
		if err != nil {
			return err
		}
		defer src.Close()
		off, n, err := r.of(src.Size())
		if err != nil {
			return err
		}
		h := make()
		progress := cli.NewProgress(a.err, "checksum "+args[0], n)
		_, err = copyRange(c.Context(), h, src, off, n, progress.Add)
		progress.Done()
		if err != nil {
			return err
		}
		sum := checksum{args[0], algorithm, hex.EncodeToString(h.Sum(nil)), off, n}
		return a.format.Write(a.out, sum, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "%s  %s\n", sum.Sum, cli.Printable(sum.Disk))
			return err
		})
	}
	return c
}
