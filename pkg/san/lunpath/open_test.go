package lunpath_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
	"github.com/vmdk-csi/vmdk-csi/pkg/san"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/iscsi/iscsitest"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/store"
)

const size = 8 << 20

var small = store.FormatOptions{ExtentSize: 64 << 10, AreaSize: 64 << 10}

func must(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// newStore makes a store on a LUN and opens it once, so that it has a nonce.
func newStore(t *testing.T, where string) {
	t.Helper()
	lun, _, err := lunpath.Open(t.Context(), where, lunpath.Options{ReadWrite: true, Exclusive: true, Blank: true})
	must(t, err)
	_, err = store.Format(lun, small)
	must(t, err)
	s, err := store.Open(lun, store.Options{})
	must(t, err, s.Close(), lun.Close())
}

// newFile is a file with zeros.
func newFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lun")
	must(t, os.WriteFile(path, nil, 0o600), os.Truncate(path, size))
	return path
}

// TestOpen: by every kind of path the LUN is found to be the one that it is.
func TestOpen(t *testing.T) {
	for kind, where := range map[string]func(t *testing.T) string{
		"file":  newFile,
		"iscsi": func(t *testing.T) string { return iscsitest.New(t, size).URL() },
	} {
		t.Run(kind, func(t *testing.T) {
			where := where(t)
			newStore(t, where)
			lun, id, err := lunpath.Open(t.Context(), where, lunpath.Options{ReadWrite: true})
			must(t, err)
			if id.Where != where || id.Bytes != size || len(id.Store) != 32 || len(id.Nonce) != 32 || (id.Designator != "") != (kind == "iscsi") {
				t.Errorf("%+v", id)
			}
			s, err := store.Open(lun, store.Options{})
			must(t, err)
			f, err := s.Root().Open("disk", fsx.ReadWrite|fsx.Create)
			must(t, err)
			text := strings.Repeat("what is written by one path ", 9999)
			_, err = f.WriteAt([]byte(text), 777)
			must(t, err, f.Punch(4096, 70000), f.Zero(100000, 3), f.Datasync(), f.Close())
			want := lunpath.Options{}.Want(san.LUN{Store: s.UUID().String(), Nonce: store.UUID(s.Nonce()).String(), Bytes: s.Size()})
			other, id, err := lunpath.Open(t.Context(), where, want)
			must(t, err)
			if id.Store != want.Store || id.Nonce != want.Nonce {
				t.Errorf("by another path: %+v, want %+v", id, want)
			}
			reader, err := store.Open(other, store.Options{ReadOnly: true})
			must(t, err)
			f, err = reader.Root().Open("disk", fsx.ReadOnly)
			must(t, err)
			got, expected := make([]byte, len(text)), []byte(text)
			clear(expected[4096-777:][:70000])
			clear(expected[100000-777:][:3])
			if _, err := f.ReadAt(got, 777); err != nil || string(got) != string(expected) {
				t.Errorf("another content is read by another path (%v)", err)
			}
			if _, err := other.WriteAt(make([]byte, 512), 0); err == nil {
				t.Error("what was opened for reading was written")
			}
			must(t, f.Close(), reader.Close(), other.Close(), s.Close(), lun.Close())
		})
	}
}

// TestFaults: what is wrong with a LUN is told by the kind of the error, its text and its remedy.
func TestFaults(t *testing.T) {
	right := newFile(t)
	newStore(t, right)
	_, id, err := openClosed(t, right, lunpath.Options{})
	must(t, err)
	other := newFile(t)
	newStore(t, other)
	shrunk := newFile(t)
	newStore(t, shrunk)
	must(t, os.Truncate(shrunk, size/2))
	broken := newFile(t)
	newStore(t, broken)
	f, err := os.OpenFile(broken, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte("?"), 4096+100)
	must(t, err)
	_, err = f.WriteAt([]byte("?"), size-4096+100)
	must(t, err, f.Close())
	for name, c := range map[string]wrong{
		"missing":     {right + "-none", lunpath.Options{}, fault.NotFound, "missing"},
		"a directory": {filepath.Dir(right), lunpath.Options{}, fault.Unsupported, "direct"},
		"no store":    {newFile(t), lunpath.Options{}, fault.NotFound, "no store"},
		"wrong":       {other, lunpath.Options{Store: id.Store}, fault.Precondition, "wrong one"},
		"opened anew": {right, lunpath.Options{Store: id.Store, Nonce: strings.Repeat("0", 32)}, fault.Precondition, "anew"},
		"shrunk":      {shrunk, lunpath.Options{Store: id.Store}, fault.Damaged, "shrunk"},
		"too small":   {right, lunpath.Options{Bytes: size + 1}, fault.OutOfRange, "needed"},
		"broken":      {broken, lunpath.Options{}, fault.Damaged, "checksum"},
	} {
		t.Run(name, c.check)
	}
}

// TestFaultsOfTargets is the same through iSCSI.
func TestFaultsOfTargets(t *testing.T) {
	target := iscsitest.New(t, size)
	for name, c := range map[string]wrong{
		"no target":           {strings.Replace(target.URL(), ":disks", ":none", 1), lunpath.Options{}, fault.NotFound, ""},
		"no unit":             {strings.TrimSuffix(target.URL(), "1") + "7", lunpath.Options{}, fault.NotFound, ""},
		"nobody there":        {"iscsi://127.0.0.1:1/" + iscsitest.TargetName + "/1", lunpath.Options{}, fault.Unavailable, ""},
		"no store by iscsi":   {target.URL(), lunpath.Options{}, fault.NotFound, "no store"},
		"password in the URL": {"iscsi://me:secret word@127.0.0.1/x/1", lunpath.Options{}, fault.Invalid, ""},
		"libiscsi's password": {"iscsi://me%25secret@127.0.0.1/x/1", lunpath.Options{}, fault.Invalid, "password"},
		"no unit in the URL":  {"iscsi://127.0.0.1/x", lunpath.Options{}, fault.Invalid, "no logical unit"},
		"a unit that is none": {"iscsi://127.0.0.1/x/16384", lunpath.Options{}, fault.Invalid, "16384"},
	} {
		t.Run(name, c.check)
	}
}

// wrong is a LUN that is not opened, and why.
type wrong struct {
	where string
	o     lunpath.Options
	kind  fault.Kind
	text  string
}

func (c wrong) check(t *testing.T) {
	_, _, err := openClosed(t, c.where, c.o)
	var f *fault.Fault
	if !errors.As(err, &f) || f.Kind != c.kind || !strings.Contains(err.Error(), c.text) {
		t.Fatalf("%v, kind %s; want %s with %q", err, fault.KindOf(err), c.kind, c.text)
	}
	if f.Remedy == "" && c.kind != fault.Invalid {
		t.Errorf("%v has no remedy", err)
	}
	if strings.Contains(err.Error(), "secret") {
		t.Errorf("it tells a secret: %v", err)
	}
}

func openClosed(t *testing.T, where string, o lunpath.Options) (fsx.File, lunpath.Identity, error) {
	lun, id, err := lunpath.Open(t.Context(), where, o)
	if err == nil {
		must(t, lun.Close())
	}
	return lun, id, err
}

// TestCHAP: the secret comes from the credentials, the name from the URL.
func TestCHAP(t *testing.T) {
	target := iscsitest.New(t, size)
	target.Stop()
	target.Users = true
	target.Start()
	where := strings.Replace(target.URL(), "iscsi://", "iscsi://node@", 1)
	o := lunpath.Options{Blank: true, Credentials: lunpath.Credentials{
		Secret: "a secret of a node", TargetUser: "array", TargetSecret: "a secret of the array"}}
	_, id, err := openClosed(t, where, o)
	if must(t, err); id.Bytes != size {
		t.Errorf("%+v", id)
	}
	o.Secret = "not this one, no"
	if _, _, err := openClosed(t, where, o); !errors.Is(err, fault.Denied) || strings.Contains(err.Error(), o.Secret) {
		t.Errorf("a wrong secret: %v", err)
	}
}
