// Package leaktest is what test mains share: a package's tests fail if they leave a goroutine or an open file behind.
//
// It imports the standard library only, and only tests import it.
package leaktest
