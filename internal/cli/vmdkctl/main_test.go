package vmdkctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// AsProgram makes the test binary be vmdkctl: commands, keepers and workers are processes of their own, as in life.
const asProgram = "VMDKCTL_TEST_AS_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
		code := Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
		stop()
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// Rig is a directory of disks, and a private place for keepers.
type rig struct {
	t   *testing.T
	dir string
	env []string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	// Not t.TempDir: a socket's path has 107 bytes.
	run, err := os.MkdirTemp("", "vmdkctl-run")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	// The race detector sleeps a second at every exit of a process, unless told not to.
	env := append(os.Environ(), asProgram+"=1", "VMDKCTL_RUN_DIR="+run, "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	return &rig{t: t, dir: t.TempDir(), env: env}
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

type result struct {
	out, err string
	code     int
}

func (r *rig) command(args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env, cmd.Dir = r.env, r.dir
	return cmd
}

func (r *rig) run(args ...string) result {
	r.t.Helper()
	return r.finish(r.command(args...))
}

func (r *rig) finish(cmd *exec.Cmd) result {
	r.t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		r.t.Fatal(err)
	}
	return result{out.String(), errOut.String(), cmd.ProcessState.ExitCode()}
}

// Ok runs a command that must succeed, and returns what it answered.
func (r *rig) ok(args ...string) string {
	r.t.Helper()
	res := r.run(args...)
	if res.code != 0 {
		r.t.Fatalf("vmdkctl %s: exit code %d\n%s%s", strings.Join(args, " "), res.code, res.out, res.err)
	}
	return res.out
}

// Fails runs a command that must fail with the code, and with an error and a remedy in words.
func (r *rig) fails(code int, text string, args ...string) {
	r.t.Helper()
	res := r.run(args...)
	if res.code != code || !strings.Contains(res.err, text) || !strings.HasPrefix(res.err, "Error: ") || !strings.Contains(res.err, "\nRemedy: ") {
		r.t.Errorf("vmdkctl %s: exit code %d, stderr %q; want %d, and %q", strings.Join(args, " "), res.code, res.err, code, text)
	}
}

func (r *rig) json(into any, args ...string) {
	r.t.Helper()
	out := r.ok(append(args, "-o", "json")...)
	if err := json.Unmarshal([]byte(out), into); err != nil {
		r.t.Fatalf("vmdkctl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// Peer runs a tool of the machine.
func (r *rig) peer(name string, args ...string) string {
	r.t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = r.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		r.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (r *rig) same(a, b string) {
	r.t.Helper()
	r.peer("qemu-img", "compare", "-f", formatOf(a), "-F", formatOf(b), a, b)
}

func formatOf(name string) string {
	if strings.HasSuffix(name, ".vmdk") {
		return "vmdk"
	}
	return "raw"
}

// Files are the names in the rig's directory, hidden ones too.
func (r *rig) files() []string {
	r.t.Helper()
	all, err := os.ReadDir(r.dir)
	if err != nil {
		r.t.Fatal(err)
	}
	names := []string{}
	for _, e := range all {
		names = append(names, e.Name())
	}
	return names
}

// Seeded is a generator whose seed is printed, and replayed from SEED.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// Scribble has qemu-io write random patterns at random places of the disk.
func (r *rig) scribble(rnd *rand.Rand, name string, size int64, writes int) {
	r.t.Helper()
	args := []string{"-f", formatOf(name)}
	for range writes {
		length := 512 * (1 + rnd.Int64N(400))
		off := 512 * rnd.Int64N((size-length)/512)
		if rnd.IntN(6) == 0 {
			args = append(args, "-c", fmt.Sprintf("write -z %d %d", off, length))
			continue
		}
		args = append(args, "-c", fmt.Sprintf("write -P %d %d %d", rnd.IntN(256), off, length))
	}
	r.peer("qemu-io", append(args, name)...)
}

// QemuTypes are what qemu makes and the engine reads.
var qemuTypes = []string{"monolithicFlat", "monolithicSparse", "twoGbMaxExtentSparse", "twoGbMaxExtentFlat"}

// OurTypes are what create makes.
var ourTypes = diskTypes

const diskSize = 2200 << 20 // a second extent of qemu's split types, a partial table

func (r *rig) qemuDisk(rnd *rand.Rand, name, subformat string, writes int) {
	r.t.Helper()
	r.peer("qemu-img", "create", "-q", "-f", "vmdk", "-o", "subformat="+subformat, name, strconv.Itoa(diskSize))
	r.scribble(rnd, name, diskSize, writes)
	// The places where extents meet and end.
	r.peer("qemu-io", "-f", "vmdk", "-c", "write -P 7 2147352576 500k", "-c", fmt.Sprintf("write -P 9 %d 512", int64(diskSize-512)), name)
}
