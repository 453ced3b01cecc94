package local

import (
	"os"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// newScratch makes the redo log of a read-only attachment.
func newScratch(dir string) (*os.File, error) {
	f, err := sys.Scratch(dir, "redo")
	return f, fault.Wrap(err, "make the redo log of a read-only attachment")
}
