// Package floors enforces the plan of the house: which package may import which, and the few house rules that a
// program can check. It holds no code but its test, which runs `go list -deps`.
//
// The rules, with their reasons, are the tables in rules_test.go. The same import rules stand in .golangci.yml for depguard, so
// that an editor shows a violation while it is being written; this test sees what depguard cannot: what a package
// reaches through others.
//
// It imports nothing of this module and nothing imports it.
package floors
