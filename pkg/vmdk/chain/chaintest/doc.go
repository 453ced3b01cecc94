// Package chaintest holds what every implementation of chain's ports must pass.
//
// Floor 2, tests only: it imports package chain and the standard library.
package chaintest
