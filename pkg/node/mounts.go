package node

import (
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	mountutils "k8s.io/mount-utils"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// KernelMounts are the mounts of this process's mount namespace, made by mount(8), which knows the options.
type KernelMounts struct{ mounter mountutils.Interface }

// NewKernelMounts never asks systemd for a scope: no mount of ours has a user space server below it.
func NewKernelMounts() *KernelMounts {
	return &KernelMounts{mounter: mountutils.NewWithoutSystemd("")}
}

const mountInfo = "/proc/self/mountinfo"

// mangled writes a path as the kernel shows it in mountinfo, which mount-utils leaves as it is (fs/proc_namespace.c,
// show_mountinfo; fs/seq_file.c, mangle_path).
var mangled = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`)

// At reads mountinfo, and so never touches the mounted file system, which may not answer.
func (k *KernelMounts) At(path string) (Mount, bool, error) {
	// The kernel shows the path without symbolic links; the last element may be a mount whose server is dead.
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		path = filepath.Join(dir, filepath.Base(path))
	}
	path = mangled.Replace(path)
	all, err := mountutils.ParseMountInfo(mountInfo)
	if err != nil {
		return Mount{}, false, fault.Wrap(err, "read the mounts")
	}
	for _, m := range slices.Backward(all) {
		if m.MountPoint == path {
			return Mount{Source: m.Source, FSType: m.FsType, ReadOnly: slices.Contains(m.MountOptions, "ro")}, true, nil
		}
	}
	return Mount{}, false, nil
}

// Mount mounts a file system.
func (k *KernelMounts) Mount(source, target, fsType string, options []string) error {
	if err := k.mounter.Mount(source, target, fsType, options); err != nil {
		return fault.New(fault.Precondition, "check the mount options of the StorageClass; the node's kernel log says more",
			"mount %s (%s) at %s with options %q: %s", source, fsType, target, strings.Join(options, ","), oneLine(err))
	}
	return nil
}

// oneLine is what mount(8) said, without the command that mount-utils puts around it: of an event only the first line is
// seen.
func oneLine(err error) string {
	text := err.Error()
	if _, output, ok := strings.Cut(text, "Output: "); ok {
		text = output
	}
	return strings.Join(strings.Fields(text), " ")
}

// Bind makes source appear at target. A read-only bind is a second step (mount(8), "Bind mount operation"), which
// mount-utils does as a remount.
func (k *KernelMounts) Bind(source, target string, readOnly bool, options []string) error {
	all := append([]string{"bind"}, options...)
	if readOnly {
		all = append(all, "ro")
	}
	if err := k.mounter.Mount(source, target, "", all); err != nil {
		// The first step may have been done.
		if m, mounted, aerr := k.At(target); aerr == nil && mounted {
			_ = k.Unmount(target)
			err = fault.New(fault.Precondition, "check the mount options", "%w (%s was undone)", err, m.Source)
		}
		return fault.Wrap(err, "bind %s to %s", source, target)
	}
	return nil
}

// Unmount unmounts what is uppermost at target. It never waits for a server: there is no file system of a server here but
// behind a block device.
func (k *KernelMounts) Unmount(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if err == unix.EBUSY {
		return fault.New(fault.InUse, "find who has files open there (fuser -m)", "unmount %s: %w", target, err)
	}
	return fault.Wrap(err, "unmount %s", target)
}
