package driver

import (
	"bytes"
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"k8s.io/klog/v2"
)

// panicking is a controller service with a defect.
type panicking struct {
	csi.UnimplementedControllerServer
}

func (panicking) DeleteVolume(context.Context, *csi.DeleteVolumeRequest) (*csi.DeleteVolumeResponse, error) {
	panic("a defect")
}

// One server: a panic is an answer, metrics count by method and code, logs hold no secret, the end is orderly.
func TestServer(t *testing.T) {
	var log lockedBuffer
	flags := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(flags)
	for k, v := range map[string]string{"logtostderr": "false", "alsologtostderr": "false", "stderrthreshold": "FATAL", "v": "6"} {
		if err := flags.Set(k, v); err != nil {
			t.Fatal(err)
		}
	}
	klog.SetOutput(&log)
	defer klog.SetOutput(os.Stderr)

	path := filepath.Join(t.TempDir(), "csi.sock")
	if err := os.WriteFile(path, nil, 0o600); err != nil { // what a killed process left
		t.Fatal(err)
	}
	registry := prometheus.NewRegistry()
	metrics, err := NewMetrics(registry)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{Endpoint: "unix://" + path, Identity: &Identity{Version: "1"}, Controller: panicking{}, Metrics: metrics}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.Serve(ctx); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	info, err := csi.NewIdentityClient(conn).GetPluginInfo(ctx, &csi.GetPluginInfoRequest{})
	if err != nil || info.GetName() != Name {
		t.Errorf("info: %v, %v", info, err)
	}
	_, err = csi.NewControllerClient(conn).DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: "x", Secrets: map[string]string{"key": "hush-hush"}})
	wantCode(t, "a panic", err, codes.Internal)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	text := ""
	for _, f := range families {
		text += f.String()
	}
	for _, want := range []string{"DeleteVolume", "Internal", "GetPluginInfo", "vmdk_csi_calls_total", "vmdk_csi_call_seconds"} {
		if !strings.Contains(text, want) {
			t.Errorf("metrics lack %s: %s", want, text)
		}
	}
	conn.Close()
	cancel()
	wg.Wait()
	klog.Flush()
	if got := log.String(); strings.Contains(got, "hush-hush") || !strings.Contains(got, "stripped") || !strings.Contains(got, "a defect") {
		t.Errorf("log: %s", got)
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("the socket is left")
	}
	for _, bad := range []string{"", "tcp://1.2.3.4:5"} {
		if _, err := SocketPath(bad); err == nil {
			t.Errorf("endpoint %q is accepted", bad)
		}
	}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
