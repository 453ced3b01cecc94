package vmdkctl

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/wire"
	"github.com/vmdk-csi/vmdk-csi/pkg/transport"
)

func TestGoldenTransports(t *testing.T) {
	all := []reached{
		ofHostd(host.Datastore{Name: "gold", Kind: host.LUN, Scope: host.ScopeShared, Hosts: []host.DatastoreHost{{Host: "node-a", Transports: []host.TransportView{
			{Transport: "san", Reason: fault.New(fault.NotFound, "Check the zoning.", "the LUN is missing: open device /dev/sdx: no such file or directory")},
			{Transport: "hotadd", Reason: transport.NoHotAddOfLUN()},
			{Transport: "nbd", Usable: true, Detail: "the datastore's metadata server"},
		}}}}),
		{Datastore: "local", Kind: host.Directory, Host: "node-a", Transports: []host.TransportView{
			{Transport: "san", Reason: transport.NoSANOfDirectory()},
			{Transport: "hotadd", Usable: true, Detail: "the files in /srv/vmdk"},
			{Transport: "nbd", Reason: transport.NoNBDOfDirectory()},
		}},
	}
	golden(t, testdata("transports"), func(w io.Writer) error { return writeTransports(w, all) })
	golden(t, testdata("transports-none"), func(w io.Writer) error { return writeTransports(w, nil) })
}

// transports runs the command in this process.
func transports(t *testing.T, args ...string) (all []reached, errText string) {
	t.Helper()
	var out, errOut bytes.Buffer
	if Main(t.Context(), append([]string{"transports", "-o", "json"}, args...), &out, &errOut) == 0 {
		if err := json.Unmarshal(out.Bytes(), &all); err != nil {
			t.Fatal(err)
		}
	}
	return all, errOut.String()
}

// A hostd is asked by name, for all that it has or for some; who has none is told what to do.
func TestTransportsOfHostd(t *testing.T) {
	dir, err := os.MkdirTemp("", "vmdkctl-hostd") // a socket's path has 107 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	if _, text := transports(t, "--socket", socket); !strings.Contains(text, "Remedy: Start vmdk-hostd") || strings.Count(text, "try again") != 0 {
		t.Errorf("without a hostd: %s", text)
	}
	m := hosttest.NewMemory("node-a")
	defer m.Close()
	m.SetDatastore(host.Datastore{Name: "shared", Kind: host.LUN, Scope: host.ScopeShared, Hosts: []host.DatastoreHost{{Host: "node-a", Transports: []host.TransportView{
		{Transport: "san", Reason: fault.New(fault.NotFound, "Zone it.", "no LUN")}, {Transport: "nbd", Usable: true}}}}})
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- wire.Serve(ctx, l, m, wire.Options{}) }()
	defer func() { cancel(); <-served }()
	if all, text := transports(t, "--socket", socket); len(all) != 2 {
		t.Errorf("all: %+v %s", all, text)
	}
	all, text := transports(t, "--socket", socket, "shared")
	if len(all) != 1 || all[0].Host != "node-a" || all[0].Kind != host.LUN || len(all[0].Transports) != 2 || all[0].Transports[0].Reason == nil ||
		all[0].Transports[0].Reason.Remedy != "Zone it." || !all[0].Transports[1].Usable {
		t.Errorf("one: %+v %s", all, text)
	}
	if _, text := transports(t, "--socket", socket, "nowhere"); !strings.Contains(text, `no datastore "nowhere"`) {
		t.Errorf("one that is not: %s", text)
	}
}

// Paths are looked at without a hostd: a LUN, one that is missing, one without a store, a directory, an address where nobody is.
func TestTransportsOfPaths(t *testing.T) {
	dir := t.TempDir()
	lun, blank := filepath.Join(dir, "lun"), filepath.Join(dir, "blank")
	for _, f := range []string{lun, blank} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f, 128<<20); err != nil {
			t.Fatal(err)
		}
	}
	var out, errOut bytes.Buffer
	if code := Main(t.Context(), []string{"lun", "format", lun}, &out, &errOut); code != 0 {
		t.Fatalf("%d %s", code, errOut.String())
	}
	for _, tc := range []struct{ path, transport, says string }{
		{lun, "san", "nobody has owned the LUN yet"},
		{lun, "hotadd", "its metadata server alone"},
		{lun, "nbd", "certificates"},
		{filepath.Join(dir, "missing"), "san", "the LUN is missing"},
		{blank, "san", "no store"},
		{dir, "san", "need a LUN"},
		{dir, "hotadd", "holds no datastore yet"},
		{"iscsi://127.0.0.1:1/iqn.2003-01.org.example:t/0", "san", "connection refused"},
		{"iscsi://user:pw@127.0.0.1:1/t/0", "san", "password"},
	} {
		all, text := transports(t, "--socket", "/nonexistent", tc.path)
		if len(all) != 1 || len(all[0].Transports) != 3 {
			t.Fatalf("%s: %+v %s", tc.path, all, text)
		}
		for _, v := range all[0].Transports {
			if (v.Reason == nil) != v.Usable || v.Reason != nil && v.Reason.Remedy == "" {
				t.Errorf("%s: %s: a reason without a remedy: %+v", tc.path, v.Transport, v.Reason)
			}
			if said := v.Detail + fault.From(errOf(v)).Message; v.Transport == tc.transport && !strings.Contains(said, tc.says) {
				t.Errorf("%s: %s says %q, want %q", tc.path, v.Transport, said, tc.says)
			}
		}
	}
}

func errOf(v host.TransportView) error {
	if v.Reason == nil {
		return &fault.Fault{}
	}
	return v.Reason
}
