// Package fsxtest is what every fsx.Dir must do, as checks that any implementation can run.
//
// Run gives each check an empty directory. A check returns an error instead of failing a test, so that this package's
// own test can show that each one fails for an implementation with the fault it is there for.
//
// Floor 0, tests only.
package fsxtest
