package sys

import (
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MountParam is one parameter of a file system, as fsconfig(FSCONFIG_SET_STRING) takes it. An empty Value is a flag.
type MountParam struct{ Key, Value string }

// DetachedMount creates a file system and a mount of it that is attached nowhere: no mountinfo shows it, no mount
// namespace pins it, and it ends with the last file opened through it (fsopen(2), fsmount(2)). The result is an O_PATH
// descriptor of its root.
func DetachedMount(fstype string, params []MountParam, attrs int) (*os.File, error) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("fsopen "+fstype, err)
	}
	defer func() { _ = unix.Close(fs) }()
	for _, p := range params {
		if p.Value == "" {
			err = unix.FsconfigSetFlag(fs, p.Key)
		} else {
			err = unix.FsconfigSetString(fs, p.Key, p.Value)
		}
		if err != nil {
			return nil, withLog(fs, os.NewSyscallError("fsconfig "+fstype+" "+p.Key, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, withLog(fs, os.NewSyscallError("fsconfig "+fstype+" create", err))
	}
	m, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	if err != nil {
		return nil, withLog(fs, os.NewSyscallError("fsmount "+fstype, err))
	}
	return os.NewFile(uintptr(m), "mount:"+fstype), nil
}

// withLog adds the kernel's own words, which a file system context keeps for its reader.
func withLog(fs int, err error) error {
	buf := make([]byte, 4096)
	n, rerr := unix.Read(fs, buf)
	if rerr != nil || n <= 2 {
		return err
	}
	return errors.Join(err, errors.New(strings.TrimSpace(string(buf[2:n]))))
}
