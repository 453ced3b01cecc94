package vmdkctl

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi/iscsitest"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunlease"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
)

// TestLUNByISCSI: a logical unit behind a target is a LUN like a device; nobody but us speaks iSCSI here.
func TestLUNByISCSI(t *testing.T) {
	r := newRig(t)
	target := iscsitest.New(t, 96<<20)
	target.Stop()
	target.Users = true
	target.Start()
	url := strings.Replace(target.URL(), "iscsi://", "iscsi://node@", 1)
	if err := os.WriteFile(r.path("secret"), []byte("a secret of a node\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.fails(cli.ExitFailed, "CHAP", "lun", "format", strings.Replace(url, "node@", "", 1))
	login := []string{"--chap-secret-file", "secret", "--initiator", "iqn.2026-01.example:admin"}
	lun := func(args ...string) []string { return append(append([]string{"lun"}, args...), login...) }
	r.ok(lun("format", url, "--area-size", "1M")...)
	r.fails(cli.ExitFailed, "not empty", lun("format", url)...)
	content := r.lunDisks(target.Image, map[string]host.DiskSpec{
		"thin": {Name: "thin", Datastore: "lun", Size: 16 << 20, Format: host.Thin, Type: host.MonolithicSparse}})
	target.Stop() // which read ahead before the file was changed behind it
	target.Start()
	if out := r.ok(lun("info", url)...); !strings.Contains(out, "naa.") && !strings.Contains(out, "t10.") && !strings.Contains(out, "eui.") {
		t.Errorf("info does not tell the unit's name:\n%s", out)
	}
	r.ok(lun("check", url)...)
	r.ok(lun("export", url, "thin", "out")...)
	if err := os.WriteFile(r.path("thin.raw"), content["thin"], 0o600); err != nil {
		t.Fatal(err)
	}
	r.peer("qemu-img", "compare", "-f", "vmdk", "-F", "raw", "out/disk-000001.vmdk", "thin.raw")
}

// TestLUNOwner: info tells who owns a LUN, and a LUN that somebody owns is not formatted.
func TestLUNOwner(t *testing.T) {
	r := newRig(t)
	if err := os.WriteFile(r.path("lun"), make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	r.ok("lun", "format", "lun", "--area-size", "1M")
	if out := r.ok("lun", "info", "lun"); !strings.Contains(out, "none yet") {
		t.Errorf("nobody has owned it:\n%s", out)
	}
	lun, _, err := lunpath.Open(t.Context(), r.path("lun"), lunpath.Options{ReadWrite: true})
	if err != nil {
		t.Fatal(err)
	}
	defer lun.Close()
	l, err := lunlease.Acquire(t.Context(), lun, lunlease.Me{Host: "node-a", Address: "10.0.0.7:9810"}, lunlease.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if out := r.ok("lun", "info", "lun"); !strings.Contains(out, "node-a at 10.0.0.7:9810, alive") {
		t.Errorf("it is owned:\n%s", out)
	}
	r.fails(cli.ExitInUse, "node-a, which is alive", "lun", "format", "--force", "lun")
	if err := l.Release(); err != nil {
		t.Fatal(err)
	}
	var info lunInfo
	r.json(&info, "lun", "info", "lun")
	if info.Owner == nil || info.Owner.Host != "node-a" || !info.Owner.Released || info.Owner.Alive || info.UUID == "" {
		t.Errorf("%+v", info.Owner)
	}
	r.ok("lun", "format", "--force", "lun", "--area-size", "1M")
}

// TestLUNReserved: a LUN that a host has reserved is looked at all the same, and it is freed when that host is gone for good.
func TestLUNReserved(t *testing.T) {
	r := newRig(t)
	target := iscsitest.New(t, 8<<20)
	r.ok("lun", "format", target.URL(), "--area-size", "1M")
	lun, _, err := lunpath.Open(t.Context(), target.URL(), lunpath.Options{ReadWrite: true, Blank: true})
	if err != nil {
		t.Fatal(err)
	}
	o := lunlease.Options{}
	o.Unit, o.Reset, _ = lunpath.Reservations(lun)
	l, err := lunlease.Acquire(t.Context(), lun, lunlease.Me{Host: "node-a"}, o)
	if err != nil {
		t.Fatal(err)
	}
	if out := r.ok("lun", "info", target.URL()); !strings.Contains(out, "node-a, alive") {
		t.Errorf("info of a reserved LUN:\n%s", out)
	}
	r.ok("lun", "check", target.URL())
	r.fails(cli.ExitInUse, "node-a, which is alive", "lun", "clear-reservations", target.URL())
	if s, err := o.Unit.State(t.Context()); err != nil || len(s.Keys) != 1 || s.Holder != lunlease.Key("node-a") {
		t.Errorf("who looked left something behind: %+v, %v", s, err)
	}
	if err := errors.Join(l.Release(), lun.Close()); err != nil {
		t.Fatal(err)
	}
	if out := r.ok("lun", "clear-reservations", target.URL()); !strings.Contains(out, ": 1 registrations are gone, it was reserved by 0x564c") {
		t.Errorf("clear: %s", out)
	}
	lun, _, err = lunpath.Open(t.Context(), target.URL(), lunpath.Options{})
	if err != nil {
		t.Fatalf("a LUN that was cleared: %v", err)
	}
	if err := lun.Close(); err != nil {
		t.Fatal(err)
	}
	r.fails(cli.ExitFailed, "a file", "lun", "clear-reservations", target.Image)
}
