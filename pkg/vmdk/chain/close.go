package chain

import "errors"

// Close ends the use of the disk. A growth, snapshot or merge under way is cancelled, and waited for. A writable disk is
// flushed, then marked clean, extent by extent; then all files are closed, the head first. After an error the head keeps
// its unclean mark, and the next open checks it.
func (c *Chain) Close() error {
	c.end()
	c.changeMu.Lock()
	defer c.changeMu.Unlock()
	c.gate.Lock()
	defer c.gate.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var errs []error
	if !c.o.ReadOnly {
		errs = append(errs, c.closeHead())
	}
	for i := len(c.links) - 1; i >= 0; i-- {
		if i == len(c.links)-1 && !c.o.ReadOnly {
			continue
		}
		errs = append(errs, c.links[i].Close())
	}
	return errors.Join(errs...)
}

func (c *Chain) closeHead() error {
	err := c.commit()
	if err == nil {
		c.reclaimAll() // the gate is held: no request is under way
	}
	if err != nil || c.poison.Load() != nil {
		return errors.Join(err, c.head.Close())
	}
	return c.head.CloseClean()
}

// Abandon closes the files and nothing else, as death would: what only memory holds is lost but for Pending. A growth,
// snapshot or merge under way meets a closed disk.
func (c *Chain) Abandon() error {
	c.end()
	c.gate.Lock()
	defer c.gate.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	var errs []error
	for i := len(c.links) - 1; i >= 0; i-- {
		errs = append(errs, c.links[i].Close())
	}
	return errors.Join(errs...)
}
