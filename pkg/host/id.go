package host

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"
)

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// The kinds of things that have names; a volume and a snapshot may have the same one.
const (
	KindVolume   = "volume"
	KindSnapshot = "snapshot"
)

// NameHash is the hash of (kind, name) that owns a name on a datastore and in the API: 32 characters of [a-z2-7], so
// that it is a file name and a Kubernetes object name whatever the orchestrator's name holds.
func NameHash(kind, name string) string {
	sum := sha256.Sum256([]byte(kind + "\x00" + name))
	return idEncoding.EncodeToString(sum[:20])
}

// DiskID is the id of the disk that the orchestrator calls name.
func DiskID(name string) string { return "vd-" + NameHash(KindVolume, name) }

// ValidDiskID says whether s can be the id of a disk.
func ValidDiskID(s string) bool {
	rest, ok := strings.CutPrefix(s, "vd-")
	return ok && validHash(rest)
}

// validHash says whether s can be a NameHash.
func validHash(s string) bool {
	return len(s) == 32 && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz234567") == ""
}
