package san

import (
	"time"

	"golang.org/x/sys/unix"
)

// Clock is a time that goes on while a machine sleeps, as leases do.
type Clock interface {
	Now() time.Duration
	// After is a channel that gets a value when d has passed.
	After(d time.Duration) <-chan time.Time
}

// BootTime is CLOCK_BOOTTIME.
type BootTime struct{}

// Now implements Clock.
func (BootTime) Now() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) // cannot fail on Linux since 2.6.39
	return time.Duration(ts.Nano())
}

// After implements Clock. A timer of Go does not count a machine's sleep; who waits looks at Now again.
func (BootTime) After(d time.Duration) <-chan time.Time { return time.After(d) }
