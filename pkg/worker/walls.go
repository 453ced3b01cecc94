package worker

import (
	"os"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
)

// buildWalls leaves the process its descriptors and its disk's directory, and nothing else that can be taken away. What
// cannot be put up is told, not fatal: a disk is served on kernels that have less. The order matters: becoming an I/O
// flusher needs a capability, Landlock needs no_new_privs, and the filter comes last because it denies nothing above it but
// may deny what a later version adds.
func buildWalls(dir *os.File) Walls {
	var w Walls
	try := func(err error) bool {
		if err != nil {
			w.Missing = append(w.Missing, err.Error())
		}
		return err == nil
	}
	w.IOFlusher = try(sys.BecomeIOFlusher())
	if try(sys.NoNewPrivileges()) {
		abi, err := sys.RestrictTo(dir)
		try(err)
		w.Landlock = abi
	}
	w.NoCaps = try(sys.DropCapabilities())
	w.Seccomp = try(sys.DenySyscalls())
	try(sys.Undumpable())
	return w
}
