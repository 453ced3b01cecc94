package csi

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	registration "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/vmdk-csi/vmdk-csi/pkg/driver"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// kubelet is what asks at the registration socket.
type kubelet struct {
	t   *testing.T
	dir string
}

// socket waits for a socket other than old.
func (k kubelet) socket(old os.FileInfo) os.FileInfo {
	k.t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if now, err := os.Stat(filepath.Join(k.dir, driver.Name+"-reg.sock")); err == nil && (old == nil || !os.SameFile(old, now)) {
			return now
		}
	}
	k.t.Fatal("no new registration socket")
	return nil
}

// answer asks for the driver, as the kubelet does at each new socket, and says how its registration went.
func (k kubelet) answer(registered bool) {
	k.t.Helper()
	conn, err := grpc.NewClient("unix://"+filepath.Join(k.dir, driver.Name+"-reg.sock"),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
	if err != nil {
		k.t.Fatal(err)
	}
	defer conn.Close()
	c := registration.NewRegistrationClient(conn)
	info, err := c.GetInfo(k.t.Context(), &registration.InfoRequest{}, grpc.WaitForReady(true))
	if err != nil || info.GetName() != driver.Name || info.GetEndpoint() != "/csi/csi.sock" {
		k.t.Fatalf("%v, %v", info, err)
	}
	s := &registration.RegistrationStatus{PluginRegistered: registered}
	if !registered {
		s.Error = "error updating CSINode object: connection refused"
	}
	if _, err := c.NotifyRegistrationStatus(k.t.Context(), s); err != nil {
		k.t.Fatal(err)
	}
}

// A kubelet that cannot register the driver does not end the process that holds the disks; it is offered a new socket,
// at which it asks again.
func TestRefusedRegistration(t *testing.T) {
	dir := t.TempDir()
	// A socket made anew may get the inode of the old one, unless that is still there by another name.
	keep := func(n string) {
		if err := os.Link(filepath.Join(dir, driver.Name+"-reg.sock"), filepath.Join(dir, n)); err != nil {
			t.Fatal(err)
		}
	}
	r := newRegistrar(dir, "/csi/csi.sock")
	r.pause = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.serve(ctx) }()
	k := kubelet{t, dir}
	first := k.socket(nil)
	keep("first")
	k.answer(false)
	if err := r.refused(); !errors.Is(err, fault.Precondition) {
		t.Fatalf("after a refusal: %v", err)
	}
	second := k.socket(first)
	keep("second")
	k.answer(true)
	if err := r.refused(); err != nil {
		t.Fatalf("after a registration: %v", err)
	}
	k.answer(false) // a restarted kubelet asks at the socket that is there
	k.socket(second)
	select {
	case <-ended:
		t.Fatal("serving ended")
	default:
	}
	cancel()
	<-ended
}

// The kubelet's directory comes back by itself, for instance after a remount.
func TestRegistrationWithoutADirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "later")
	r := newRegistrar(dir, "/csi/csi.sock")
	r.pause = time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); r.serve(ctx) }()
	for end := time.Now().Add(10 * time.Second); r.refused() == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("nobody is told")
		}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	kubelet{t, dir}.socket(nil)
	cancel()
	<-ended
}
