package floors

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// A page that names the test of each fault is worth something as long as the tests are there.
func TestNamedTestsExist(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root(t), "docs", "transports.md"))
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	groups := regexp.MustCompile("`([a-z0-9/]+)` (Test[A-Za-z]+(?:, Test[A-Za-z]+)*)")
	for _, g := range groups.FindAllStringSubmatch(string(page), -1) {
		for _, name := range strings.Split(g[2], ", ") {
			named++
			cmd := exec.Command("grep", "-rqE", "--include=*_test.go", "--max-count=1", "^func "+name+`\(`, filepath.Join(root(t), g[1]))
			if err := cmd.Run(); err != nil {
				t.Errorf("docs/transports.md names %s of %s, which is not there", name, g[1])
			}
		}
	}
	if named < 40 {
		t.Errorf("docs/transports.md names %d tests: the pattern does not fit any more", named)
	}
}
