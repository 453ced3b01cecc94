package vmdkctl

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestVdiskmanagerTable runs what the table in docs/vdiskmanager.md says, from its top to its bottom.
func TestVdiskmanagerTable(t *testing.T) {
	b, err := os.ReadFile("../../../docs/vdiskmanager.md")
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t)
	ran := 0
	commands := regexp.MustCompile("`vmdkctl ([^`]+)`")
	for _, line := range strings.Split(string(b), "\n") {
		cells := strings.Split(line, "|")
		if len(cells) != 5 || !strings.HasPrefix(cells[1], " `-") {
			continue
		}
		for _, m := range commands.FindAllStringSubmatch(cells[3], -1) {
			args := strings.Fields(m[1])
			if res := r.run(args...); res.code != 0 {
				t.Errorf("vmdkctl %s: exit code %d\n%s%s", m[1], res.code, res.out, res.err)
			}
			ran++
			if args[0] == "create" || args[0] == "convert" {
				r.peer("qemu-img", "info", "-f", "vmdk", args[map[string]int{"create": 1, "convert": 2}[args[0]]])
			}
		}
	}
	if ran < 12 {
		t.Errorf("only %d commands: the table was not read", ran)
	}
	left, err := filepath.Glob(r.path("renamed*"))
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// TestManPages: there is one for the program and one for each command.
func TestManPages(t *testing.T) {
	r := newRig(t)
	r.ok("docs", "--man", "man1")
	for _, page := range []string{"vmdkctl.1", "vmdkctl-convert.1", "vmdkctl-rebase.1"} {
		b, err := os.ReadFile(r.path(filepath.Join("man1", page)))
		if err != nil || !strings.Contains(string(b), ".TH \"VMDKCTL\" \"1\"") {
			t.Errorf("%s: %v", page, err)
		}
	}
}
