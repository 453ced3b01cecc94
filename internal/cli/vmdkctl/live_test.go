package vmdkctl

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/internal/fsx"
)

func TestParseLocks(t *testing.T) {
	got := parseLocks([]byte(`1: OFDLCK ADVISORY  READ -1 fe:01:11 100 101
2: OFDLCK ADVISORY  READ -1 fe:01:12 100 100
2: -> OFDLCK ADVISORY  WRITE -1 fe:01:13 101 101
3: FLOCK  ADVISORY  WRITE 345 fe:01:14 0 EOF
4: POSIX  ADVISORY  WRITE 345 fe:01:15 0 EOF
5: OFDLCK ADVISORY  READ -1 00:2a:16 103 103
6: nonsense
`))
	for key, want := range map[string]bool{"fe:01:11": true, "fe:01:12": false, "fe:01:13": false, "fe:01:14": false,
		"fe:01:15": true, "00:2a:16": true} {
		if got[key] != want {
			t.Errorf("%s: live %v, want %v", key, got[key], want)
		}
	}
	if key := lockKey(fsx.Info{Device: unix.Mkdev(0xfe, 1), Inode: 11}); key != "fe:01:11" {
		t.Errorf("lockKey = %s", key)
	}
}
