package guest

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// cpio writes an archive in the format of initramfs ("newc", Linux Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	w     io.Writer
	inode int
	err   error
}

func (c *cpio) write(b []byte) {
	if c.err == nil {
		_, c.err = c.w.Write(b)
	}
}

func (c *cpio) pad(n int) { c.write(make([]byte, -n&3)) }

// add adds one entry; mode is the kernel's st_mode.
func (c *cpio) add(name string, mode uint32, content []byte) {
	c.inode++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name)+1, 0, name)
	c.write([]byte(header))
	c.pad(len(header))
	c.write(content)
	c.pad(len(content))
}

// addTree adds what is below root.
func (c *cpio) addTree(root string) error {
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		const directory, regular, link = 0o040000, 0o100000, 0o120000
		perm := uint32(info.Mode().Perm())
		switch {
		case info.IsDir():
			c.add(name, directory|perm, nil)
		case info.Mode()&fs.ModeSymlink != 0:
			to, err := os.Readlink(path)
			if err != nil {
				return err
			}
			c.add(name, link|0o777, []byte(to))
		default:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			c.add(name, regular|perm, b)
		}
		return c.err
	})
}

// initramfs packs the root file system with the agent as its first program.
func initramfs(to, dir, agent string) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	c := &cpio{w: f}
	if err := c.addTree(filepath.Join(dir, "root")); err != nil {
		return err
	}
	for name, file := range map[string]string{"init": agent, "modules/order": filepath.Join(dir, "modules")} {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		c.add(name, 0o100755, b)
	}
	// The kernel opens it for process 1's standard output before anything is mounted; 5:1 as in Documentation/admin-guide/devices.txt.
	c.inode++
	const name = "dev/console"
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, 0o020600, 0, 0, 1, 0, 0, 0, 0, 5, 1, len(name)+1, 0, name)
	c.write([]byte(header))
	c.pad(len(header))
	c.add("TRAILER!!!", 0, nil)
	return c.err
}
