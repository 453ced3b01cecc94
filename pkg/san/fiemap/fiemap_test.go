package fiemap

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// TestFlags: what each flag of an extent means for reading and for writing.
func TestFlags(t *testing.T) {
	for _, c := range []struct {
		flags       uint32
		read, write fault.Kind
		zero        bool
	}{
		{0, "", "", false}, {extentLast, "", "", false}, {extentUnknown, fault.Precondition, fault.Precondition, false},
		{extentDelalloc | extentUnknown, fault.Precondition, fault.Precondition, false}, {extentEncoded, fault.Unsupported, fault.Unsupported, false},
		{extentDataEncrypted | extentEncoded, fault.Unsupported, fault.Unsupported, false}, {extentNotAligned, fault.Unsupported, fault.Unsupported, false},
		{extentInline | extentNotAligned, fault.Unsupported, fault.Unsupported, false}, {extentTail, fault.Unsupported, fault.Unsupported, false},
		{extentUnwritten, "", fault.Precondition, true}, {extentMerged, fault.Unsupported, fault.Unsupported, false},
		{extentShared | extentLast, "", fault.Precondition, false}, {0x10000, fault.Unsupported, fault.Unsupported, false},
	} {
		zero, err := judge(c.flags, false)
		if fault.KindOf(err) != c.read || err == nil && zero != c.zero {
			t.Errorf("read %#x: %v, zero %v", c.flags, err, zero)
		}
		if _, err := judge(c.flags, true); fault.KindOf(err) != c.write {
			t.Errorf("write %#x: %v", c.flags, err)
		}
	}
}

const inNamespace = "FIEMAP_TEST_IN_NAMESPACE"

// TestFileSystems makes file systems on loop devices, in a mount namespace of its own, and every condition for a refusal in them.
func TestFileSystems(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounts need root")
	}
	if os.Getenv(inNamespace) == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestFileSystems$", "-test.v="+fmt.Sprint(testing.Verbose()))
		cmd.Env = append(os.Environ(), inNamespace+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
		out, err := cmd.CombinedOutput()
		if err != nil || testing.Verbose() {
			t.Logf("%s", out)
		}
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(out, []byte("PASS")) {
			t.Fatal("nothing ran")
		}
		return
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Fatal(err)
	}
	t.Run("ext4", ext4)
	t.Run("xfs", func(t *testing.T) { xfs(t, false) })
	t.Run("xfs with reflink", func(t *testing.T) { xfs(t, true) })
	t.Run("others", others)
	t.Run("partition", partition)
}

// mounted is a file system on a loop device.
type mounted struct {
	t        *testing.T
	dir, dev string
}

func mount(t *testing.T, options, mkfs string, args ...string) *mounted {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600), os.Truncate(image, 400<<20))
	run(t, mkfs, append(args, image)...)
	m := &mounted{t: t, dir: t.TempDir(), dev: strings.TrimSpace(run(t, "losetup", "--find", "--show", image))}
	t.Cleanup(func() { run(t, "losetup", "--detach", m.dev) })
	run(t, "mount", "-o", "defaults"+options, m.dev, m.dir)
	t.Cleanup(func() { run(t, "umount", m.dir) })
	return m
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// file makes a file; what is left open ends with the test.
func (m *mounted) file(name string) *os.File {
	m.t.Helper()
	f, err := os.OpenFile(filepath.Join(m.dir, name), os.O_RDWR|os.O_CREATE, 0o600)
	must(m.t, err)
	m.t.Cleanup(func() { f.Close() })
	return f
}

// prepared is a file that may be written from outside.
func (m *mounted) prepared(name string, size int64) *os.File {
	m.t.Helper()
	f := m.file(name)
	must(m.t, Prepare(f, size))
	m.immutable(name)
	return f
}

func (m *mounted) immutable(name string) {
	m.t.Helper()
	run(m.t, "chattr", "+i", filepath.Join(m.dir, name))
	m.t.Cleanup(func() { run(m.t, "chattr", "-i", filepath.Join(m.dir, name)) })
}

// refused checks what a map for reading and one for writing end with.
func refused(t *testing.T, what string, f *os.File, read, write fault.Kind) {
	t.Helper()
	if _, err := Map(f, false); fault.KindOf(err) != read {
		t.Errorf("%s, to read: %v", what, err)
	}
	if _, err := Map(f, true); fault.KindOf(err) != write {
		t.Errorf("%s, to write: %v", what, err)
	}
}

// through checks that what is written to the places on the device is in the file, and the other way round.
func (m *mounted) through(f *os.File) {
	t := m.t
	t.Helper()
	p, err := Map(f, true)
	must(t, err)
	dev, err := os.OpenFile(m.dev, os.O_RDWR|unix.O_DIRECT, 0)
	must(t, err)
	defer dev.Close()
	buf, err := unix.Mmap(-1, 0, unit, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON) // aligned
	must(t, err)
	defer func() { must(t, unix.Munmap(buf)) }()
	for i, x := range p.Extents {
		copy(buf, fmt.Sprintf("extent %d", i))
		_, err := dev.WriteAt(buf, x.Place+x.Len-unit)
		must(t, err)
	}
	must(t, DropCache(f))
	got := make([]byte, unit)
	for i, x := range p.Extents {
		_, err := f.ReadAt(got, x.Off+x.Len-unit)
		must(t, err)
		if want := fmt.Sprintf("extent %d", i); string(got[:len(want)]) != want {
			t.Errorf("extent %d reads %q", i, got[:len(want)])
		}
	}
	again, err := Map(f, true)
	must(t, err)
	if again.Fingerprint() != p.Fingerprint() {
		t.Error("another fingerprint, and nothing has moved")
	}
}

// files makes the conditions that both file systems know.
func (m *mounted) files(write fault.Kind) {
	t := m.t
	unprepared := m.file("unwritten")
	must(t, unix.Fallocate(int(unprepared.Fd()), 0, 0, 1<<20))
	m.immutable("unwritten")
	holes := m.file("holes")
	_, err := holes.WriteAt(make([]byte, 8192), 64<<10)
	must(t, err, holes.Truncate(256<<10))
	m.immutable("holes")
	odd := m.prepared("odd", 1<<20)
	run(t, "chattr", "-i", odd.Name())
	must(t, odd.Truncate(1<<20-100))
	m.immutable("odd")
	moving := m.file("moving")
	must(t, Prepare(moving, 1<<20))
	two := m.file("two")
	must(t, Prepare(two, 1<<20), os.Link(two.Name(), two.Name()+"-2"))
	empty := m.file("empty")
	refused(t, "unwritten", unprepared, "", write)
	refused(t, "with holes", holes, "", write)
	refused(t, "of an odd size", odd, fault.Unsupported, fault.Unsupported)
	refused(t, "not immutable", moving, "", write)
	refused(t, "with two names", two, fault.Precondition, fault.Precondition)
	refused(t, "empty", empty, fault.Unsupported, fault.Unsupported)
	p, err := Map(holes, false)
	must(t, err)
	if len(p.Extents) != 3 || !p.Extents[0].Zero || p.Extents[1].Zero || !p.Extents[2].Zero {
		t.Errorf("holes: %+v", p.Extents)
	}
	dir, err := os.Open(m.dir)
	must(t, err)
	defer dir.Close()
	refused(t, "a directory", dir, fault.Invalid, fault.Invalid)
	was, err := Map(moving, false)
	must(t, err)
	must(t, unix.Fallocate(int(moving.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, 64<<10))
	now, err := Map(moving, false)
	must(t, err)
	if was.Fingerprint() == now.Fingerprint() {
		t.Error("the fingerprint is the same after a hole was punched")
	}
}

func ext4(t *testing.T) {
	m := mount(t, "", "mkfs.ext4", "-q", "-b", "4096", "-O", "inline_data")
	m.through(m.prepared("good", 8<<20))
	m.files(fault.Precondition)
	tiny := m.file("tiny")
	_, err := tiny.WriteAt([]byte("x"), 0)
	must(t, err, tiny.Sync())
	refused(t, "inline", tiny, fault.Unsupported, fault.Unsupported)
	journalled := m.file("journalled")
	if out, err := exec.Command("chattr", "+j", journalled.Name()).CombinedOutput(); err != nil {
		t.Logf("no journalled file without CAP_SYS_RESOURCE: %s", out)
	} else {
		must(t, Prepare(journalled, 1<<20))
		refused(t, "with a journal of its own", journalled, fault.Unsupported, fault.Unsupported)
	}
	old := mount(t, "", "mkfs.ext4", "-q", "-b", "4096", "-O", "^extent,^64bit")
	f := old.file("f")
	_, err = f.WriteAt(make([]byte, 1<<20), 0)
	must(t, err, f.Sync())
	refused(t, "of blocks", f, fault.Unsupported, fault.Unsupported)
	all := mount(t, ",data=journal", "mkfs.ext4", "-q", "-b", "4096")
	refused(t, "data=journal", all.prepared("f", 1<<20), fault.Unsupported, fault.Unsupported)
}

func xfs(t *testing.T, reflink bool) {
	m := mount(t, "", "mkfs.xfs", "-q", "-m", fmt.Sprintf("reflink=%d", map[bool]int{true: 1}[reflink]))
	if !reflink {
		m.through(m.prepared("good", 8<<20))
		m.files(fault.Precondition)
		return
	}
	m.files(fault.Unsupported)
	f := m.prepared("f", 1<<20)
	refused(t, "with reflink", f, "", fault.Unsupported)
	run(t, "cp", "--reflink=always", f.Name(), f.Name()+"-copy") // in spite of chattr +i
	p, err := Map(f, false)
	must(t, err)
	if _, err := places([]raw{{length: 1 << 20, physical: uint64(p.Extents[0].Place), flags: extentShared | extentLast}}, 1<<20, 0, true); !errors.Is(err, fault.Precondition) {
		t.Errorf("shared, to write: %v", err)
	}
	all, err := ask(f, 1<<20)
	must(t, err)
	if all[0].flags&extentShared == 0 {
		t.Error("the kernel says of no extent that it is shared: the subject was not exercised")
	}
}

func others(t *testing.T) {
	m := mount(t, "", "mkfs.btrfs", "-q")
	f := m.file("f")
	must(t, Prepare(f, 1<<20))
	refused(t, "btrfs", f, fault.Unsupported, fault.Unsupported)
	dir := t.TempDir()
	run(t, "mount", "-t", "tmpfs", "none", dir)
	defer run(t, "umount", dir)
	g, err := os.Create(filepath.Join(dir, "g"))
	must(t, err)
	defer g.Close()
	must(t, g.Truncate(1<<20))
	refused(t, "tmpfs", g, fault.Unsupported, fault.Unsupported)
}

// partition: places count from the start of the whole device.
func partition(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(image, nil, 0o600), os.Truncate(image, 100<<20))
	table := exec.Command("sfdisk", "-q", image)
	table.Stdin = strings.NewReader("label: dos\nstart=20480, size=100000\n")
	if out, err := table.CombinedOutput(); err != nil {
		t.Fatalf("sfdisk: %v: %s", err, out)
	}
	dev := strings.TrimSpace(run(t, "losetup", "--find", "--show", "--partscan", image))
	t.Cleanup(func() { run(t, "losetup", "--detach", dev) })
	if _, err := os.Stat(dev + "p1"); err != nil {
		number, err := os.ReadFile("/sys/class/block/" + filepath.Base(dev) + "p1/dev")
		if err != nil {
			t.Skipf("the kernel makes no partitions of loop devices here: %v", err)
		}
		var major, minor uint32
		_, err = fmt.Sscanf(string(number), "%d:%d", &major, &minor)
		must(t, err)
		node := filepath.Join(t.TempDir(), "p1")
		must(t, unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))))
		partitioned(t, dev, node)
		return
	}
	partitioned(t, dev, dev+"p1")
}

func partitioned(t *testing.T, dev, node string) {
	run(t, "mkfs.ext4", "-q", "-b", "4096", node)
	m := &mounted{t: t, dir: t.TempDir(), dev: dev}
	run(t, "mount", node, m.dir)
	t.Cleanup(func() { run(t, "umount", m.dir) })
	f := m.prepared("f", 4<<20)
	p, err := Map(f, true)
	must(t, err)
	if p.Extents[0].Place < 20480*512 {
		t.Errorf("%+v lies before its partition", p.Extents[0])
	}
	m.through(f)
}
