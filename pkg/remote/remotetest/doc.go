// Package remotetest is a small owner of a LUN for tests of those who use its disk: one flat disk on a LUN in a file, served by NBD
// and by block maps, from servers that end and begin.
//
// Only tests import it.
package remotetest
