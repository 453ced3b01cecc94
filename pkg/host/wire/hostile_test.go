package wire_test

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/hosttest"
	"github.com/vmdk-csi/vmdk-csi/pkg/host/wire"
)

func frame(body string) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
}

const greeting = `{"protocol":"vmdk-csi/hostd","version":1}`

func dial(t *testing.T, s *served) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// A client that breaks the protocol loses its connection; the server goes on and keeps none of its descriptors.
func TestHostileClients(t *testing.T) {
	m := hosttest.NewMemory("a")
	defer m.Close()
	s := serve(t, "", m)
	before := descriptors(t)
	for what, bytes := range map[string][]byte{
		"nothing":                        nil,
		"half a length":                  {0, 0},
		"a huge length":                  {0xff, 0xff, 0xff, 0xff},
		"less than promised":             append([]byte{0, 0, 1, 0}, "{}"...),
		"no JSON":                        frame("hello"),
		"another protocol":               frame(`{"protocol":"ssh","version":1}`),
		"another version":                frame(`{"protocol":"vmdk-csi/hostd","version":99}`),
		"no JSON after the greeting":     append(frame(greeting), frame("]")...),
		"descriptors that are not there": append(frame(greeting), frame(`{"method":"Get","files":3}`)...),
	} {
		t.Run(what, func(t *testing.T) {
			c := dial(t, s)
			if len(bytes) > 0 {
				if _, err := c.Write(bytes); err != nil {
					t.Fatal(err)
				}
			}
			_ = c.CloseWrite()
			answer, err := io.ReadAll(c)
			if err != nil {
				t.Fatalf("the server does not end the connection: %v", err)
			}
			if strings.HasPrefix(what, "another") && !strings.Contains(string(answer), "Unsupported") {
				t.Errorf("answer %q", answer)
			}
		})
	}
	cl := client(t, s)
	if _, err := cl.Datastores(t.Context()); err != nil {
		t.Fatalf("the server is gone: %v", err)
	}
	cl.Close()
	settle(t, before)
}

func TestUninvitedDescriptorsAreClosed(t *testing.T) {
	m := hosttest.NewMemory("a")
	defer m.Close()
	s := serve(t, "", m)
	c := dial(t, s)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	bytes := append(frame(greeting), frame(`{"method":"Datastores"}`)...)
	if _, _, err := c.WriteMsgUnix(bytes, unix.UnixRights(int(w.Fd())), nil); err != nil {
		t.Fatal(err)
	}
	w.Close()
	// The last writer is the server's copy: when it is closed the pipe ends.
	if err := r.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 1)); err != io.EOF {
		t.Fatalf("the server keeps a descriptor that it was not asked to: %d %v", n, err)
	}
}

func TestUnknownMethod(t *testing.T) {
	m := hosttest.NewMemory("a")
	defer m.Close()
	c := dial(t, serve(t, "", m))
	if _, err := c.Write(append(frame(greeting), frame(`{"method":"Format"}`)...)); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 512)
	var got string
	for !strings.Contains(got, "Unsupported") {
		n, err := c.Read(answer)
		if err != nil {
			t.Fatalf("answer %q: %v", got, err)
		}
		got += string(answer[:n])
	}
}

// Another uid needs an invitation. SO_PEERCRED is the effective uid of the thread that connected, so a thread plays it.
func TestPeerUID(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can be somebody else")
	}
	const nobody = 65534
	m := hosttest.NewMemory("a")
	defer m.Close()
	for _, c := range []struct {
		invited []int
		kind    fault.Kind
	}{{nil, fault.Denied}, {[]int{1, nobody}, ""}} {
		dir := t.TempDir()
		if err := os.Chmod(filepath.Dir(dir), 0o755); err != nil {
			t.Fatal(err)
		}
		s := serveWith(t, filepath.Join(dir, "s"), m, wire.Options{UIDs: c.invited})
		if err := os.Chmod(s.path, 0o777); err != nil {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() {
			// Never unlocked: the thread ends with the goroutine, and with it the uid. The raw call changes this thread only.
			runtime.LockOSThread()
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), nobody, ^uintptr(0)); errno != 0 {
				done <- errno
				return
			}
			cl, err := wire.Dial(context.Background(), s.path)
			if err == nil {
				cl.Close()
			}
			done <- err
		}()
		if err := <-done; fault.KindOf(err) != c.kind || err != nil && !strings.Contains(err.Error(), "uid 65534") {
			t.Errorf("invited %v: %v, want kind %q", c.invited, err, c.kind)
		}
	}
}
