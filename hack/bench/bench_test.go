package main

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// Every section measures something, and the page gets it. What comes out is not looked at.
func TestRun(t *testing.T) {
	if _, err := exec.LookPath("qemu-img"); err != nil {
		t.Skip("the peer qemu-img is not installed")
	}
	dir := t.TempDir()
	page := filepath.Join(dir, "page.md")
	if err := os.WriteFile(page, []byte(resultsBegin+resultsEnd), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := os.Create(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if err := run(t.Context(), out, []string{"-quick", "-dir", dir, "-docs", page}); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		t.Fatal(err)
	}
	printed, err := io.ReadAll(out)
	if err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"pause p99, engine, 1 TiB", "linked restore, 64 GiB", "full copy", "merge up", "merge of the live head", "new grains, flushed each, depth 64", "callers: 2", "full, memory"} {
		if !strings.Contains(string(printed), want) || !strings.Contains(string(written), want) {
			t.Errorf("no %q in\n%s\n%s", want, printed, written)
		}
	}
	if noDevices() == "" && !strings.Contains(string(printed), "loop on the LUN") {
		t.Errorf("no block map beside a loop device in\n%s", printed)
	}
	left, err := filepath.Glob(filepath.Join(dir, "vmdk-csi-bench-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

func TestChoose(t *testing.T) {
	some, err := choose("merge,pause")
	if err != nil || len(some) != 2 || some[0].name != "merge" {
		t.Errorf("choose = %v, %v", some, err)
	}
	if all, err := choose(""); err != nil || len(all) != len(sections) {
		t.Errorf("choose all = %v, %v", all, err)
	}
	if _, err := choose("speed"); err == nil {
		t.Error("there is a section speed")
	}
}
