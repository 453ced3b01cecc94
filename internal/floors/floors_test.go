package floors

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/format"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The longest file; the house's aim is 500, and a file over this one is two files.
const maxLines = 600

type pkg struct {
	ImportPath string
	Dir        string
	GoFiles    []string
	Imports    []string
	Deps       []string
}

func (p pkg) path() string { return strings.TrimPrefix(p.ImportPath, module+"/") }

func root(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		t.Fatalf("go list -m: %v", err)
	}
	return strings.TrimSpace(string(out))
}

// OwnPackages are the packages of this module, as built (no test files).
func ownPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-deps", "-e", "-json=ImportPath,Dir,GoFiles,Imports,Deps", "./...")
	cmd.Dir = root(t)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list -deps: %v\n%s", err, stderr.String())
	}
	var own []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("go list -deps: %v", err)
		}
		if strings.HasPrefix(p.ImportPath, module+"/") {
			own = append(own, p)
		}
	}
	if len(own) < 3 {
		t.Fatalf("go list found %d packages of %s: the rules were not exercised", len(own), module)
	}
	return own
}

func TestEveryPackageHasAFloor(t *testing.T) {
	for _, p := range ownPackages(t) {
		if isTestHarness(p.path()) {
			continue
		}
		_, room := floorOf(p.path())
		if _, ok := outsideOf(p.path()); room == "" && !ok {
			t.Errorf("%s belongs to no floor: add it to the table in rules_test.go and to ARCHITECTURE.md", p.path())
		}
	}
}

func TestImportsPointDown(t *testing.T) {
	for _, p := range ownPackages(t) {
		if isTestHarness(p.path()) {
			continue // a conformance suite is a test that several packages share
		}
		for _, imp := range p.Imports {
			to, ok := strings.CutPrefix(imp, module+"/")
			if !ok {
				continue
			}
			if why := checkImport(p.path(), to); why != "" {
				t.Errorf("%s imports %s: %s", p.path(), to, why)
			}
		}
	}
}

// A conformance suite or fake lives in a package named after its port with "test" (host/hosttest, fsx/fsxtest).
func isTestHarness(path string) bool { return strings.HasSuffix(path, "test") }

func TestForbiddenImports(t *testing.T) {
	for _, p := range ownPackages(t) {
		for _, n := range nevers {
			if !under(p.path(), n.from) {
				continue
			}
			reached := p.Imports
			if n.deep {
				reached = p.Deps
			}
			for _, imp := range reached {
				if strings.HasPrefix(imp, n.to) && !strings.HasPrefix(imp, module+"/"+n.from) {
					t.Errorf("%s reaches %s: %s", p.path(), imp, n.reason)
				}
			}
		}
	}
}

func TestLowFloorsRunInAnyEnvironment(t *testing.T) {
	for _, p := range ownPackages(t) {
		floor, room := floorOf(p.path())
		if room == "" || floor > 4 {
			continue
		}
		for _, imp := range p.Deps {
			for _, e := range environment {
				if strings.HasPrefix(imp, e.prefix) {
					t.Errorf("%s (floor %d) reaches %s: %s", p.path(), floor, imp, e.reason)
				}
			}
		}
	}
}

func TestHarnessesStayOutOfPrograms(t *testing.T) {
	for _, p := range ownPackages(t) {
		if !under(p.path(), "cmd") {
			continue
		}
		for _, imp := range p.Deps {
			if to, ok := strings.CutPrefix(imp, module+"/"); ok && isTestHarness(to) {
				t.Errorf("%s ships the test harness %s", p.path(), to)
			}
		}
	}
}

func TestPackagesHaveADoc(t *testing.T) {
	for _, p := range ownPackages(t) {
		if !under(p.path(), "pkg") && !under(p.path(), "internal") {
			continue
		}
		doc, err := os.ReadFile(filepath.Join(p.Dir, "doc.go"))
		switch {
		case err != nil:
			t.Errorf("%s has no doc.go: say what it is responsible for, its invariants, its locks, what it must not import", p.path())
		case !bytes.Contains(doc, []byte("// Package ")):
			t.Errorf("%s/doc.go has no package comment", p.path())
		}
	}
}

func TestFilesAreShortAndFormatted(t *testing.T) {
	files := 0
	top := root(t)
	err := filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // a generator's temporary file
		}
		if err != nil {
			return err
		}
		if d.IsDir() {
			if n := d.Name(); n == ".git" || n == "testdata" || n == "bin" || n == "dist" || n == "node_modules" {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		files++
		checkFile(t, top, path)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if files == 0 {
		t.Fatal("no Go file found: the rules were not exercised")
	}
}

func checkFile(t *testing.T, top, path string) {
	t.Helper()
	rel, err := filepath.Rel(top, path)
	if err != nil {
		t.Fatal(err)
	}
	src, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	generated := bytes.Contains(src, []byte("\n// Code generated ")) || bytes.HasPrefix(src, []byte("// Code generated "))
	if n := bytes.Count(src, []byte("\n")); n > maxLines && !generated {
		t.Errorf("%s has %d lines, more than %d: find the second file in it", rel, n, maxLines)
	}
	out, err := format.Source(src)
	if err != nil {
		t.Errorf("%s: %v", rel, err)
	} else if !bytes.Equal(out, src) {
		t.Errorf("%s is not gofmt clean: run gofmt -w %s", rel, rel)
	}
}

// The rules themselves, on imports that must pass and must not.
func TestCheckImport(t *testing.T) {
	for _, tc := range []struct {
		from, to string
		ok       bool
	}{
		{"cmd/vmdkctl", "pkg/host/local", true},
		{"cmd/vmdkctl", "internal/cli/vmdkctl", true},
		{"internal/cli/vmdkctl", "internal/cli", true},
		{"internal/cli/vmdkctl", "pkg/export/fuse", true},
		{"pkg/volume", "internal/cli", false},
		{"pkg/volume", "pkg/vmdk/chain", true},
		{"pkg/vmdk/chain", "pkg/vmdk", true},
		{"pkg/vmdk", "pkg/vmdk/chain", false},
		{"pkg/vmdk", "pkg/vmdk/kdmv", true},
		{"pkg/vmdk/chain", "pkg/datastore", false},
		{"pkg/host/local", "pkg/host", true},
		{"pkg/host/local", "pkg/volume", true},
		{"pkg/host/local", "pkg/host/wire", false},
		{"pkg/host", "pkg/host/local", false},
		{"pkg/driver", "pkg/node", false},
		{"pkg/driver", "pkg/host", true},
		{"pkg/driver", "pkg/host/kube", false},
		{"pkg/worker", "pkg/export", true},
		{"pkg/worker", "pkg/export/fuse", false},
		{"pkg/worker/supervise", "pkg/worker/table", true},
		{"pkg/block", "pkg/fault", true},
		{"internal/fsx", "internal/sys", true},
		{"internal/fsx", "pkg/block", false},
		{"internal/fsx/sim", "internal/fsx", true},
		{"pkg/fault", "internal/fsx", false},
		{"pkg/host/kube", "pkg/api/v1alpha1", true},
		{"pkg/volume", "pkg/api/v1alpha1", false},
		{"pkg/api/v1alpha1", "pkg/api/v1alpha1/x", true},
		{"test/e2e", "pkg/host/kube", true},
	} {
		if why := checkImport(tc.from, tc.to); (why == "") != tc.ok {
			t.Errorf("checkImport(%s, %s) = %q, want ok %v", tc.from, tc.to, why, tc.ok)
		}
	}
}
