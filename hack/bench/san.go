package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/loop"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	lunstore "github.com/vmdk-csi/vmdk-csi/pkg/san/store"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// MeasureSAN uses a flat disk on a LUN through a read-write block map, as the device that a pod gets, beside a loop device on the same
// blocks of the same LUN.
func measureSAN(ctx context.Context, b *bench) (part, error) {
	size, rounds, each := int64(2<<30), 3, 3*time.Second
	if b.quick {
		size, rounds, each = 64<<20, 1, 200*time.Millisecond
	}
	p := part{title: "SAN", about: fmt.Sprintf("A flat disk of %d MiB on a LUN, which is a file here. Ours: its blocks by a read-write map, in a process of its own, as a FUSE file under a loop "+
		"device: what a pod gets. The peer: a loop device on the same blocks of the LUN. Both past the page cache, `fio` with libaio, in turns of %v; medians of %d. *The map alone* is without the "+
		"device, in this process, beside the loop device by the same callers. The shares are of reads of 4 KiB, one at a time and scattered: what each layer adds to those before it.", size>>20, each, rounds)}
	if why := noDevices(); why != "" {
		p.about += " Not measured here: " + why + "."
		return p, nil
	}
	pl, err := b.place()
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, pl.leave()) }()
	l, err := newLUNDisk(ctx, pl, size)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	for _, c := range []struct {
		what, mode, block string
		depth             int
		unit              string
		goal              goal
	}{
		{"read 4 KiB at random, 32 at a time", "randread", "4k", 32, "/s", atLeast(.6)},
		{"write 4 KiB at random, 32 at a time", "randwrite", "4k", 32, "/s", atLeast(.6)},
		{"read 4 KiB at random, one at a time", "randread", "4k", 1, "/s", nil},
		{"read 1 MiB in order, 8 at a time", "read", "1M", 8, "MiB/s", atLeast(.6)},
		{"write 1 MiB in order, 8 at a time", "write", "1M", 8, "MiB/s", atLeast(.6)},
	} {
		var rates [2][]float64
		for range rounds {
			for i, dev := range []*loop.Device{l.mapped, l.plain} {
				n, err := fio(ctx, dev.Path(), c.mode, c.block, c.depth, each, c.unit)
				if err != nil {
					return p, fmt.Errorf("%s on %s: %w", c.what, dev.Path(), err)
				}
				rates[i] = append(rates[i], n)
			}
		}
		p.rows = append(p.rows, row{c.what, value{median(rates[0]), c.unit}, "loop on the LUN", value{median(rates[1]), c.unit}, c.goal})
	}
	for _, more := range []func(int64, int, time.Duration) ([]row, error){l.alone, l.layers} {
		rows, err := more(size, rounds, each)
		if err != nil {
			return p, err
		}
		p.rows = append(p.rows, rows...)
	}
	return p, nil
}

// Alone uses the map in this process, without the device that a pod gets of it, and the peer by the same callers.
func (l *lunDisk) alone(size int64, rounds int, each time.Duration) ([]row, error) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(worker.Procs)) // as where a disk is served
	mapper, err := l.mapper()
	if err != nil {
		return nil, err
	}
	loopFile, err := os.OpenFile(l.plain.Path(), os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer loopFile.Close()
	type disk interface {
		io.ReaderAt
		io.WriterAt
	}
	var rows []row
	for _, c := range []struct {
		what   string
		length int64
		depth  int
		do     func(d disk, p []byte, off int64) error
	}{
		{"read 4 KiB at random, 32 at a time", blockSize, 32, func(d disk, p []byte, off int64) error { _, err := d.ReadAt(p, off); return err }},
		{"write 4 KiB at random, 32 at a time", blockSize, 32, func(d disk, p []byte, off int64) error { _, err := d.WriteAt(p, off); return err }},
		{"read 1 MiB at random, 8 at a time", fillChunk, 8, func(d disk, p []byte, off int64) error { _, err := d.ReadAt(p, off); return err }},
		{"write 1 MiB at random, 8 at a time", fillChunk, 8, func(d disk, p []byte, off int64) error { _, err := d.WriteAt(p, off); return err }},
	} {
		var rates [2][]float64
		for range rounds {
			for i, d := range []disk{mapper, loopFile} {
				n, err := hammer(c.depth, c.length, size, each, func(p []byte, off int64) error { return c.do(d, p, off) })
				if err != nil {
					return nil, fmt.Errorf("%s: %w", c.what, err)
				}
				rates[i] = append(rates[i], n)
			}
		}
		rows = append(rows, row{"the map alone: " + c.what, value{median(rates[0]), "/s"}, "loop on the LUN", value{median(rates[1]), "/s"}, atLeast(.6)})
	}
	return rows, nil
}

// Hammer makes requests at random places from depth callers, and returns how many ended in a second.
func hammer(depth int, length, size int64, each time.Duration, do func(p []byte, off int64) error) (float64, error) {
	var callers sync.WaitGroup
	var ended atomic.Int64
	errs := make([]error, depth)
	begin := time.Now()
	for i := range depth {
		callers.Go(func() {
			r, p := rand.New(rand.NewPCG(uint64(i), 7)), fsx.AlignedBuffer(int(length))
			for errs[i] == nil && time.Since(begin) < each {
				errs[i] = do(p, r.Int64N(size/length)*length)
				ended.Add(1)
			}
		})
	}
	callers.Wait()
	return float64(ended.Load()) / time.Since(begin).Seconds(), errors.Join(errs...)
}

func (l *lunDisk) mapper() (*san.Mapper, error) {
	return san.NewMapper(l.m, san.MapperConfig{LUNs: []fsx.File{l.lun}, Sent: san.BootTime{}.Now()})
}

// Layers are what each layer adds to a read of 4 KiB, one at a time; the ratio is its share.
func (l *lunDisk) layers(size int64, rounds int, each time.Duration) ([]row, error) {
	lun, err := os.OpenFile(l.path, os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer lun.Close()
	dev, err := os.OpenFile(l.mapped.Path(), os.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return nil, err
	}
	defer dev.Close()
	mapper, err := l.mapper()
	if err != nil {
		return nil, err
	}
	all := []struct {
		what string
		from io.ReaderAt
		base int64
	}{{"the LUN, by pread", lun, l.m.Extents[0].Place}, {"the block map", mapper, 0}, {"FUSE, and the other process", l.file, 0}, {"the loop device", dev, 0}}
	took := make([][]time.Duration, len(all))
	reads := int(each / (500 * time.Microsecond))
	for range rounds {
		for i, x := range all {
			read := func(k int, buf []byte) error {
				_, err := x.from.ReadAt(buf, x.base+int64(k)*scatterStep%size)
				return err
			}
			err := several(reads/10+1, 1, read) // so that what the one before it left behind does not count
			t, terr := timed(func() error { return several(reads, 1, read) })
			if err = errors.Join(err, terr); err != nil {
				return nil, fmt.Errorf("read from %s: %w", x.what, err)
			}
			took[i] = append(took[i], t/time.Duration(reads))
		}
	}
	var rows []row
	micros := func(d time.Duration) value { return value{float64(d) / float64(time.Microsecond), "µs"} }
	whole, before := median(took[len(all)-1]), time.Duration(0)
	for i, x := range all {
		t := median(took[i])
		rows = append(rows, row{"share of a 4 KiB read: " + x.what, micros(t - before), "all of it", micros(whole), nil})
		before = t
	}
	return rows, nil
}

// Fio runs one load.
func fio(ctx context.Context, dev, mode, block string, depth int, d time.Duration, unit string) (float64, error) {
	out, err := exec.CommandContext(ctx, "fio", "--name=bench", "--filename="+dev, "--rw="+mode, "--bs="+block, fmt.Sprintf("--iodepth=%d", depth),
		"--ioengine=libaio", "--direct=1", "--time_based", fmt.Sprintf("--runtime=%dms", d.Milliseconds()), "--randrepeat=1", "--norandommap", "--output-format=json").Output()
	if err != nil {
		return 0, fmt.Errorf("fio: %w\n%s", err, out)
	}
	var r struct {
		Jobs []struct {
			Error       int
			Read, Write struct {
				Iops    float64
				BwBytes float64 `json:"bw_bytes"`
			}
		}
	}
	if err := json.Unmarshal(out, &r); err != nil {
		return 0, fmt.Errorf("fio: %w\n%s", err, out)
	}
	if len(r.Jobs) != 1 || r.Jobs[0].Error != 0 {
		return 0, fmt.Errorf("fio: %s", out)
	}
	n := r.Jobs[0].Read.Iops + r.Jobs[0].Write.Iops
	if unit == "MiB/s" {
		n = (r.Jobs[0].Read.BwBytes + r.Jobs[0].Write.BwBytes) / (1 << 20)
	}
	if n == 0 {
		return 0, errors.New("fio did nothing: nothing was measured")
	}
	return n, nil
}

// LunDisk is a disk on a LUN that is reached in two ways.
type lunDisk struct {
	lun           fsx.File
	store         *lunstore.Store
	session       *fuse.Session
	process       *exec.Cmd
	mapped, plain *loop.Device
	stop          context.CancelFunc
	name, path    string // of the map's file, of the LUN's
	m             *san.Map
	file          *os.File // the map's, in the FUSE session
}

// MapConfig is what the process that serves a map is told on its standard input.
type mapConfig struct {
	Name, LUN string
	Map       *san.Map
}

func newLUNDisk(ctx context.Context, pl *place, size int64) (_ *lunDisk, err error) {
	l := &lunDisk{}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	path := pl.file("lun")
	m, err := l.makeMap(ctx, path, size)
	if err != nil {
		return nil, err
	}
	l.path, l.m = path, m
	if len(m.Extents) != 1 {
		return nil, fmt.Errorf("the disk is in %d pieces, a loop device shows one", len(m.Extents))
	}
	back, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer back.Close()
	if l.plain, err = loop.Attach(back, loop.Options{DirectIO: true, Offset: m.Extents[0].Place, SizeLimit: size}); err != nil {
		return nil, err
	}
	if err := l.serve(ctx, mapConfig{fmt.Sprintf("vmdk-csi-bench-%d-map", os.Getpid()), path, m}); err != nil {
		return nil, err
	}
	return l, l.same(size)
}

// MakeMap makes the LUN, a flat disk in it of which every block was written, and a map of it.
func (l *lunDisk) makeMap(ctx context.Context, path string, size int64) (_ *san.Map, err error) {
	if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Truncate(path, size+128<<20)); err != nil {
		return nil, err
	}
	if l.lun, err = fsx.OpenDevice(path, fsx.ReadWrite|fsx.Direct); err != nil {
		return nil, err
	}
	if _, err := lunstore.Format(l.lun, lunstore.FormatOptions{}); err != nil {
		return nil, err
	}
	if l.store, err = lunstore.Open(l.lun, lunstore.Options{}); err != nil {
		return nil, err
	}
	f, err := l.store.Root().Open("disk", fsx.ReadWrite|fsx.Create)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := errors.Join(f.Allocate(0, size), f.Datasync()); err != nil {
		return nil, err
	}
	buf := fsx.AlignedBuffer(fillChunk)
	for off := int64(0); off < size; off += fillChunk {
		for i := range buf {
			buf[i] = byte(off>>20) | 1
		}
		if _, err := f.WriteAt(buf, off); err != nil {
			return nil, err
		}
	}
	if err := f.Datasync(); err != nil {
		return nil, err
	}
	return san.NewServer(ctx, san.Config{Store: l.store, Source: flatFile{l.store, size}, Lease: 24 * time.Hour, LeaseOnly: true}).
		Get(ctx, san.Request{Volume: "disk", Node: "bench", Mode: san.ReadWrite})
}

// Serve starts the process that has the map, and makes a device of it.
func (l *lunDisk) serve(ctx context.Context, c mapConfig) (err error) {
	l.name = c.Name
	if l.session, err = fuse.NewSession(c.Name); err != nil {
		return err
	}
	life, stop := context.WithCancel(ctx)
	l.stop = stop
	l.process = exec.CommandContext(life, "/proc/self/exe", "map")
	l.process.Cancel = func() error { return l.process.Process.Signal(unix.SIGTERM) }
	l.process.ExtraFiles = []*os.File{l.session.Dev}
	l.process.Stderr = os.Stderr
	in, err := l.process.StdinPipe()
	if err != nil {
		return err
	}
	if err := l.process.Start(); err != nil {
		l.process = nil
		return err
	}
	if err := errors.Join(json.NewEncoder(in).Encode(c), in.Close()); err != nil {
		return err
	}
	if l.file, err = l.session.OpenDisk(ctx, os.O_RDWR|unix.O_DIRECT); err != nil {
		return err
	}
	if l.mapped, err = loop.Attach(l.file, loop.Options{DirectIO: true}); err != nil {
		return err
	}
	return l.session.CloseMount()
}

// Same makes sure that both devices show the same disk.
func (l *lunDisk) same(size int64) error {
	a, b := fsx.AlignedBuffer(blockSize), fsx.AlignedBuffer(blockSize)
	for off := int64(0); off < size; off += size/64/blockSize*blockSize + blockSize {
		if _, err := l.mapped.File.ReadAt(a, off); err != nil {
			return err
		}
		if _, err := l.plain.File.ReadAt(b, off); err != nil {
			return err
		}
		if a[0] != byte(off>>20)|1 || string(a) != string(b) {
			return fmt.Errorf("at %d the map shows %d, the LUN %d", off, a[0], b[0])
		}
	}
	return nil
}

func (l *lunDisk) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var errs []error
	for _, d := range []*loop.Device{l.mapped, l.plain} {
		if d != nil {
			errs = append(errs, d.Detach())
		}
	}
	if l.file != nil {
		errs = append(errs, l.file.Close())
	}
	if l.mapped != nil {
		errs = append(errs, loop.WaitReleased(ctx, l.mapped.Number, "/"+l.name))
	}
	if l.process != nil {
		l.stop()
		_ = l.process.Wait() // which was ended by a signal
	}
	if l.session != nil {
		errs = append(errs, l.session.Close())
	}
	if l.store != nil {
		errs = append(errs, l.store.Close())
	}
	if l.lun != nil {
		errs = append(errs, l.lun.Close())
	}
	return errors.Join(errs...)
}

// FlatFile is a file of a store as a disk.
type flatFile struct {
	store *lunstore.Store
	size  int64
}

// Open implements san.Source.
func (f flatFile) Open(context.Context, san.Request) (san.Subject, error) { return f, nil }
func (f flatFile) Dir() fsx.Dir                                           { return f.store.Root() }
func (f flatFile) Size() int64                                            { return f.size }
func (f flatFile) Writable() error                                        { return nil }
func (f flatFile) Close() error                                           { return nil }
func (f flatFile) Runs() iter.Seq2[san.Run, error] {
	return func(yield func(san.Run, error) bool) { yield(san.Run{Len: f.size, File: "disk"}, nil) }
}

// ServeMap is the process that has a map: a node's, with what a worker has.
func serveMap(ctx context.Context, in io.Reader) error {
	runtime.GOMAXPROCS(max(worker.Procs, runtime.NumCPU()))
	var c mapConfig
	if err := json.NewDecoder(in).Decode(&c); err != nil {
		return err
	}
	lun, err := fsx.OpenDevice(c.LUN, fsx.ReadWrite|fsx.Direct)
	if err != nil {
		return err
	}
	defer lun.Close()
	m, err := san.NewMapper(c.Map, san.MapperConfig{LUNs: []fsx.File{lun}, Sent: san.BootTime{}.Now()})
	if err != nil {
		return err
	}
	err = fuse.NewServer(os.NewFile(3, "fuse"), fuse.Options{}).Serve(ctx, export.Params{Name: c.Name, Disk: m})
	if ctx.Err() != nil {
		return nil
	}
	return err
}
