package worker

import (
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

// spawner forks workers from one thread that lives until close: PR_SET_PDEATHSIG fires when the thread that forked ends.
type spawner struct {
	work chan func()
	done chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{work: make(chan func()), done: make(chan struct{})}
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for f := range s.work {
			f()
		}
	}()
	return s
}

// close ends the thread, and with it every worker that is left.
func (s *spawner) close() {
	close(s.work)
	<-s.done
}

// child is a started worker.
type child struct {
	cmd   *exec.Cmd
	pidfd *os.File
	ctl   *link
}

// start runs argv with the files of a disk at the numbers that Inherited expects.
func (s *spawner) start(o Options, id string, f Files) (*child, error) {
	mine, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	ctl, err := newLink(mine)
	if err != nil {
		return nil, err
	}
	pidfd := -1
	cmd := exec.Command(o.Command[0], append(append([]string(nil), o.Command[1:]...), id)...)
	cmd.Env = o.Env
	cmd.Stdout, cmd.Stderr = o.Stderr, o.Stderr
	cmd.ExtraFiles = []*os.File{theirs, f.Dir, f.Device, f.Table}
	if f.Scratch != nil {
		cmd.ExtraFiles = append(cmd.ExtraFiles, f.Scratch)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, PidFD: &pidfd}
	started := make(chan error)
	s.work <- func() { started <- cmd.Start() }
	if err := <-started; err != nil {
		_ = ctl.close()
		return nil, fault.Wrap(err, "start a worker for disk %s", id)
	}
	c := &child{cmd: cmd, ctl: ctl}
	if pidfd >= 0 {
		c.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	}
	return c, nil
}
