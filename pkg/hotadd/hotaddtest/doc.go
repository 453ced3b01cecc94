// Package hotaddtest is the conformance suite of the port hotadd.Bus, for every bus to run in its tests.
package hotaddtest
