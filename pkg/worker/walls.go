package worker

import (
	"os"

	"github.com/vmdk-csi/vmdk-csi/internal/sys"
	"github.com/vmdk-csi/vmdk-csi/pkg/san/lunpath"
)

// buildWalls leaves the process its descriptors and its disk's directory, and nothing else that can be taken away. What
// cannot be put up is told, not fatal: a disk is served on kernels that have less. The order matters: becoming an I/O
// flusher needs a capability, Landlock needs no_new_privs, and the filter comes last because it denies nothing above it but
// may deny what a later version adds.
//
// A worker of a remote disk keeps its LUNs and what says where hosts are instead of a directory, and may connect to other hosts.
func buildWalls(dir *os.File, r *RemoteSpec) Walls {
	var w Walls
	try := func(err error) bool {
		if err != nil {
			w.Missing = append(w.Missing, err.Error())
		}
		return err == nil
	}
	w.IOFlusher = try(sys.BecomeIOFlusher())
	if try(sys.NoNewPrivileges()) {
		abi, err := restrict(dir, r)
		try(err)
		w.Landlock = abi
	}
	w.NoCaps = try(sys.DropCapabilities())
	if r != nil {
		w.Seccomp = try(sys.DenySyscallsButInternet())
	} else {
		w.Seccomp = try(sys.DenySyscalls())
	}
	try(sys.Undumpable())
	return w
}

func restrict(dir *os.File, r *RemoteSpec) (int, error) {
	if r == nil {
		return sys.RestrictTo(dir)
	}
	paths := []sys.Path{{Name: "/etc/resolv.conf"}, {Name: "/etc/hosts"}, {Name: "/etc/nsswitch.conf"}}
	for _, where := range r.LUNs {
		if !lunpath.IsURL(where) {
			paths = append(paths, sys.Path{Name: where, Write: true})
		}
	}
	return sys.RestrictToPaths(paths)
}
