package qemu

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/hotadd"
)

// serve is a QEMU that says what it is told to: first at once, then one text after each line that it gets, then it
// ends, or is silent.
func serve(t *testing.T, silent bool, says ...string) Config {
	t.Helper()
	dir, err := os.MkdirTemp("", "qmp")
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		lines := bufio.NewScanner(c)
		for i, s := range says {
			if i > 0 && !lines.Scan() {
				return
			}
			if _, err := c.Write([]byte(s)); err != nil {
				return
			}
		}
		for silent && lines.Scan() {
			continue
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		os.RemoveAll(dir)
	})
	return Config{Socket: l.Addr().String(), Timeout: time.Minute,
		Files: func(context.Context, hotadd.Disk) (File, error) { return File{}, nil }}
}

func TestBadServers(t *testing.T) {
	const hello = `{"QMP":{"version":{}}}` + "\n"
	for name, c := range map[string]struct {
		silent bool
		says   []string
		want   fault.Kind
	}{
		"no greeting":        {false, nil, fault.Unavailable},
		"busy":               {true, nil, fault.Timeout},
		"another protocol":   {false, []string{"SSH-2.0\n"}, fault.Unavailable},
		"ends":               {false, []string{hello}, fault.Unavailable},
		"no answer":          {true, []string{hello}, fault.Timeout},
		"no JSON":            {true, []string{hello, "what?\n"}, fault.Unavailable},
		"endless line":       {true, []string{hello, strings.Repeat("x", maxLine+1)}, fault.Unavailable},
		"an answer to other": {true, []string{hello, `{"return":{},"id":77}` + "\n"}, fault.Timeout},
		"no negotiation":     {true, []string{hello, `{"error":{"class":"CommandNotFound","desc":"no"},"id":1}` + "\n"}, fault.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			config := serve(t, c.silent, c.says...)
			if c.want == fault.Timeout {
				config.Timeout = 200 * time.Millisecond
			}
			_, err := Open(t.Context(), config)
			if fault.KindOf(err) != c.want {
				t.Fatalf("%v is %s, want %s", err, fault.KindOf(err), c.want)
			}
		})
	}
	if _, err := Open(t.Context(), Config{Socket: filepath.Join(t.TempDir(), "none"), Files: serve(t, false).Files}); !errors.Is(err, fault.Unavailable) {
		t.Errorf("no socket: %v", err)
	}
	if _, err := Open(t.Context(), Config{}); !errors.Is(err, fault.Invalid) {
		t.Errorf("empty configuration: %v", err)
	}
}

// The guest does not give the device up: the wait for the event ends with the operation's time.
func TestDeviceStays(t *testing.T) {
	c := serve(t, true, `{"QMP":{}}`+"\n", `{"return":{},"id":1}`+"\n", `{"return":{},"id":2}`+"\n")
	c.Timeout = 200 * time.Millisecond
	b := &Bus{config: c, turn: make(chan struct{}, 1)}
	err := b.with(t.Context(), func(ctx context.Context, m *monitor) error { return b.removeDevice(ctx, m, "d") })
	if !errors.Is(err, fault.Timeout) {
		t.Fatalf("%v", err)
	}
	c = serve(t, true, `{"QMP":{}}`+"\n", `{"return":{},"id":1}`+"\n",
		`{"return":{},"id":2}`+"\n"+`{"event":"DEVICE_UNPLUG_GUEST_ERROR","data":{"device":"d"}}`+"\n")
	b.config = c
	err = b.with(t.Context(), func(ctx context.Context, m *monitor) error { return b.removeDevice(ctx, m, "d") })
	if !errors.Is(err, fault.InUse) {
		t.Fatalf("%v", err)
	}
}
