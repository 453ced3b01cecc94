package vmdkctl

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

func TestCommandLineErrors(t *testing.T) {
	r := newRig(t)
	r.ok("create", "disk.vmdk", "--size", "1M")
	for _, tc := range []struct {
		code int
		text string
		args string
	}{
		{cli.ExitUsage, `unknown command "creat"`, "creat x"},
		{cli.ExitUsage, `"size" not set`, "create x.vmdk"},
		{cli.ExitUsage, "accepts 1 arg(s), received 0", "info"},
		{cli.ExitUsage, "unknown flag", "info --fast disk.vmdk"},
		{cli.ExitUsage, `unknown output format "xml"`, "info -o xml disk.vmdk"},
		{cli.ExitUsage, "is not a size", "create x.vmdk --size ten"},
		{cli.ExitUsage, "unknown image format", "convert --from qcow2 disk.vmdk x.raw"},
		{cli.ExitUsage, "always thin", "convert disk.vmdk x.raw --format zeroedthick"},
		{cli.ExitUsage, `unknown type "vhd"`, "create x.vmdk --size 1M --type vhd"},
		{cli.ExitFailed, "needs a flat type", "create x.vmdk --size 1M --type monolithicSparse --format zeroedthick"},
		{cli.ExitFailed, "is not a descriptor name", "create x --size 1M"},
		{cli.ExitFailed, "looks like an extent", "create x-flat.vmdk --size 1M"},
		{cli.ExitFailed, "from 1 MiB to 62 TiB, not 63 TiB", "create x.vmdk --size 63T"},
		{cli.ExitFailed, "not 0 B", "create x.vmdk --size 0"},
		{cli.ExitFailed, "does not fit", "create x.vmdk --size 60T --format eagerzeroedthick"},
		{cli.ExitFailed, "is there", "create disk.vmdk --size 1M"},
		{cli.ExitFailed, "is there", "convert disk.vmdk disk-flat.vmdk"},
		{cli.ExitFailed, "no such file", "create nowhere/x.vmdk --size 1M"},
		{cli.ExitFailed, "does not exist", "info nope.vmdk"},
		{cli.ExitFailed, "not that of a volume", "info ."},
		{cli.ExitFailed, "holds no datastore", "info --datastore . x"},
		{cli.ExitDamaged, "descriptor", "info disk-flat.vmdk"},
	} {
		r.fails(tc.code, tc.text, strings.Fields(tc.args)...)
	}
	r.fails(cli.ExitFailed, "is 1005 bytes long", "create", strings.Repeat("n", 1000)+".vmdk", "--size", "1M")
	r.fails(cli.ExitFailed, "cannot hold", "create", "a\"b.vmdk", "--size", "1M")
	if got, want := r.files(), []string{"disk-flat.vmdk", "disk.vmdk"}; !slices.Equal(got, want) {
		t.Errorf("files %v, want %v", got, want)
	}
}

func TestDryRunsMakeNothing(t *testing.T) {
	r := newRig(t)
	r.ok("create", "disk.vmdk", "--size", "1M")
	before := r.files()
	for _, args := range []string{"create x.vmdk --size 1G --dry-run", "convert disk.vmdk x.raw --dry-run", "convert disk.vmdk x.vmdk --dry-run"} {
		if out := r.ok(strings.Fields(args)...); !strings.HasPrefix(out, "Would ") {
			t.Errorf("%s: %s", args, out)
		}
	}
	r.fails(cli.ExitFailed, "is there", "create", "disk.vmdk", "--size", "1M", "--dry-run")
	if got := r.files(); !slices.Equal(got, before) {
		t.Errorf("files %v, want %v", got, before)
	}
}

// A path in a foreign descriptor leads nowhere.
func TestForeignPathsAreNotFollowed(t *testing.T) {
	r := newRig(t)
	if err := os.Mkdir(r.path("in"), 0o755); err != nil {
		t.Fatal(err)
	}
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "base.vmdk", "1M")
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", "../base.vmdk", "-F", "vmdk", "in/child.vmdk")
	r.fails(cli.ExitFailed, "which is not beside it", "chain", "in/child.vmdk")
	if res := r.run("check", "in/child.vmdk"); res.code != cli.ExitDamaged || !strings.Contains(res.out, "which is not beside it") {
		t.Errorf("check: %+v", res)
	}
	r.ok("create", "in/flat.vmdk", "--size", "1M")
	for _, name := range []string{"/etc/passwd", "../base.vmdk", "flat.vmdk"} {
		r.edit("in/flat.vmdk", `"flat-flat.vmdk"`, `"`+name+`"`)
		res := r.run("info", "in/flat.vmdk")
		if res.code == 0 || strings.Contains(res.out, "root:") {
			t.Errorf("extent %s: %+v", name, res)
		}
		r.edit("in/flat.vmdk", `"`+name+`"`, `"flat-flat.vmdk"`)
	}
}

// Edit replaces text in a stand-alone descriptor.
func (r *rig) edit(name, from, to string) {
	r.t.Helper()
	text, err := os.ReadFile(r.path(name))
	if err != nil {
		r.t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(from)) {
		r.t.Fatalf("%s has no %q:\n%s", name, from, text)
	}
	if err := os.WriteFile(r.path(name), bytes.ReplaceAll(text, []byte(from), []byte(to)), 0o600); err != nil {
		r.t.Fatal(err)
	}
}

func (r *rig) patch(name string, off int64, b ...byte) {
	r.t.Helper()
	f, err := os.OpenFile(r.path(name), os.O_RDWR, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		r.t.Fatal(err)
	}
}

// Checked is what a program reads of check's answer.
type checked struct {
	Verdict  string
	Problems []struct{ Code, Severity, Message string }
}

func TestCheckFindsDamage(t *testing.T) {
	base := newRig(t)
	rnd := seeded(t)
	base.qemuDisk(rnd, "disk.vmdk", "monolithicSparse", 8)
	base.peer("qemu-img", "create", "-q", "-f", "vmdk", "-b", "disk.vmdk", "-F", "vmdk", "child.vmdk")
	base.ok("create", "flat.vmdk", "--size", "1M")
	for _, tc := range []struct {
		name, disk string
		harm       func(r *rig)
		verdict    string
		code       string
	}{
		{"none", "child.vmdk", func(*rig) {}, verdictClean, ""},
		{"parent modified", "child.vmdk", func(r *rig) { r.scribble(rnd, "disk.vmdk", diskSize, 1) }, verdictDamaged, "parent-modified"},
		{"parent missing", "child.vmdk", func(r *rig) { _ = os.Remove(r.path("disk.vmdk")) }, verdictDamaged, "parent-missing"},
		{"unclean", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 72, 1) }, verdictWarning, "unclean-shutdown"},
		// Sector 22 is the first redundant table of a disk with an embedded descriptor (docs/format.md).
		{"copies differ", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 22*512+4*300, 5) }, verdictDamaged, "table-copies-differ"},
		{"text transfer", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 73, '\r') }, verdictDamaged, "text-mode-transfer"},
		{"directory far away", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 58, 0xff) }, verdictDamaged, "directory-beyond-end"},
		{"no header", "disk.vmdk", func(r *rig) { r.patch("disk.vmdk", 0, 0) }, verdictDamaged, "extent-damaged"},
		{"cut off", "disk.vmdk", func(r *rig) { _ = os.Truncate(r.path("disk.vmdk"), 1<<20) }, verdictDamaged, "grain-beyond-end"},
		{"extent missing", "flat.vmdk", func(r *rig) { _ = os.Remove(r.path("flat-flat.vmdk")) }, verdictDamaged, "extent-missing"},
		{"extent short", "flat.vmdk", func(r *rig) { _ = os.Truncate(r.path("flat-flat.vmdk"), 1000) }, verdictDamaged, "extent-short"},
		{"its own ancestor", "child.vmdk", func(r *rig) {
			_ = os.Remove(r.path("disk.vmdk"))
			_ = os.Link(r.path("child.vmdk"), r.path("disk.vmdk"))
		}, verdictDamaged, "not-openable"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t)
			base.peer("cp", "--sparse=always", "-a", ".", r.dir)
			tc.harm(r)
			res := r.run("check", tc.disk, "-o", "json")
			var c checked
			if err := json.Unmarshal([]byte(res.out), &c); err != nil {
				t.Fatalf("%v\n%+v", err, res)
			}
			want := map[string]int{verdictClean: 0, verdictWarning: cli.ExitWarned, verdictDamaged: cli.ExitDamaged}[tc.verdict]
			if res.code != want || c.Verdict != tc.verdict {
				t.Errorf("exit code %d, %s", res.code, asJSON(t, c))
			}
			found := tc.code == ""
			for _, p := range c.Problems {
				found = found || p.Code == tc.code
			}
			if !found {
				t.Errorf("no problem %s in %s", tc.code, asJSON(t, c))
			}
			// The words say it too.
			if res := r.run("check", tc.disk); res.code != want || res.out == "" || res.err != "" {
				t.Errorf("%+v", res)
			}
		})
	}
}

// Qemu has the disk open for writing: looking is possible, copying is not, and check says so.
func TestLiveDisk(t *testing.T) {
	r := newRig(t)
	r.ok("create", "disk.vmdk", "--size", "64M", "--type", "twoGbMaxExtentSparse")
	cmd := exec.Command("qemu-io", "-f", "vmdk", r.path("disk.vmdk"))
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = in.Close()
		_ = cmd.Wait()
	}()
	live := func() bool {
		var i linkInfo
		r.json(&i, "info", "disk.vmdk")
		return i.Live
	}
	for deadline := time.Now().Add(10 * time.Second); !live(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("info does not see that qemu-io has the disk open")
		}
	}
	r.ok("chain", "disk.vmdk")
	r.ok("map", "disk.vmdk")
	if res := r.run("check", "disk.vmdk"); res.code != cli.ExitWarned || !strings.Contains(res.out, "the disk is live") {
		t.Errorf("check: %+v", res)
	}
	r.fails(cli.ExitInUse, "is open in another process", "convert", "disk.vmdk", "copy.raw")
	if _, err := os.Stat(r.path("copy.raw")); err == nil {
		t.Error("copy.raw was made")
	}
}

// A full file system: the command says so and leaves nothing. The file system is mounted in a mount namespace of its own.
func TestFullFileSystem(t *testing.T) {
	r := newRig(t)
	if err := os.Mkdir(r.path("small"), 0o755); err != nil {
		t.Fatal(err)
	}
	random := make([]byte, 8<<20)
	rnd := seeded(t)
	for i := range random {
		random[i] = byte(rnd.Uint32())
	}
	if err := os.WriteFile(r.path("big.raw"), random, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{
		"convert big.raw small/disk.vmdk", "convert big.raw small/disk.vmdk --type monolithicSparse", "convert big.raw small/disk.raw",
		"convert big.raw small/disk.vmdk --format zeroedthick", "create small/disk.vmdk --size 8M --format eagerzeroedthick",
	} {
		script := `mount -t tmpfs -o size=4m tmpfs small && "$@"; code=$?; echo "left: $(ls -A small)"; exit $code`
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("unshare", append([]string{"-m", "--propagation", "private", "sh", "-c", script, "sh", exe}, strings.Fields(args)...)...)
		cmd.Env, cmd.Dir = r.env, r.dir
		res := r.finish(cmd)
		if strings.Contains(res.err, "unshare: ") || strings.Contains(res.err, "mount: ") {
			t.Skipf("this test mounts a small file system, which is not allowed here: %s", res.err)
		}
		if res.code != cli.ExitFailed || !strings.Contains(res.out, "left: \n") || !strings.Contains(res.err, "Remedy: ") {
			t.Errorf("%s: %+v", args, res)
		}
		if !strings.Contains(res.err, "no space left") && !strings.Contains(res.err, "does not fit") {
			t.Errorf("%s: %s", args, res.err)
		}
	}
}

// An interrupted run removes what it began; what a killed one leaves, the next run removes.
func TestInterruptedConvert(t *testing.T) {
	r := newRig(t)
	block := bytes.Repeat([]byte{1}, 1<<20)
	f, err := os.Create(r.path("big.raw"))
	if err != nil {
		t.Fatal(err)
	}
	for range 400 {
		if _, err := f.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	begin := func() *exec.Cmd {
		cmd := r.command("convert", "big.raw", "disk.vmdk")
		var out bytes.Buffer
		cmd.Stderr = &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if m, _ := filepath.Glob(r.path(".disk.vmdk.partial-*/disk.vmdk")); len(m) == 1 {
				return cmd
			}
			if time.Now().After(deadline) {
				t.Fatalf("it never began: %v %s", r.files(), out.String())
			}
		}
	}
	cmd := begin()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if got := r.files(); err == nil || !slices.Equal(got, []string{"big.raw"}) {
		t.Errorf("interrupted: %v, files %v", err, got)
	}
	cmd = begin()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // killed
	if _, err := os.Stat(r.path("disk.vmdk")); err == nil {
		t.Error("a killed run made disk.vmdk")
	}
	r.ok("convert", "big.raw", "disk.vmdk")
	r.same("big.raw", "disk.vmdk")
	if got := r.files(); !slices.Equal(got, []string{"big.raw", "disk-flat.vmdk", "disk.vmdk"}) {
		t.Errorf("files %v", got)
	}
}
