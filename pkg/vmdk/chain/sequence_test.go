package chain_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// deeds are what sequences are made of.
var deeds = []string{"new grain", "copy on write", "overwrite", "discard", "zero", "flush", "snapshot", "merge down", "merge up", "expand", "reopen"}

// sequenceKind is a kind of base under links of a kind.
type sequenceKind struct {
	name  string
	p     vmdk.CreateParams
	child vmdk.Type
}

func sequenceKinds() (all []sequenceKind) {
	for _, b := range []sequenceKind{
		{name: "sparse", p: vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentSparse, Capacity: 96<<10 + 512, GrainSectors: 8}},
		{name: "embedded", p: vmdk.CreateParams{Type: vmdk.MonolithicSparse, Capacity: 96 << 10, GrainSectors: 8}},
		{name: "flat", p: vmdk.CreateParams{Type: vmdk.MonolithicFlat, Capacity: 96 << 10}},
		{name: "split flat", p: vmdk.CreateParams{Type: vmdk.TwoGbMaxExtentFlat, Capacity: 96 << 10}},
		{name: "vmfs", p: vmdk.CreateParams{Type: vmdk.VMFS, Capacity: 96 << 10}},
		{name: "cowd", p: vmdk.CreateParams{Type: vmdk.VMFSSparse, Capacity: 96 << 10}},
	} {
		for _, child := range childTypes {
			all = append(all, sequenceKind{b.name + " under " + string(child), b.p, child})
		}
	}
	return all
}

// sequences are all of the length.
func sequences(length int) [][]string {
	all := [][]string{nil}
	for range length {
		var next [][]string
		for _, s := range all {
			for _, d := range deeds {
				next = append(next, append(slices.Clone(s), d))
			}
		}
		all = next
	}
	return all
}

func randomSequence(r *rand.Rand, length int) (s []string) {
	for range length {
		s = append(s, deeds[r.IntN(len(deeds))])
	}
	return s
}

// long tells that make crash-long runs, which tries everything.
func long() bool { return os.Getenv("VMDK_CSI_CHAIN") == "long" }

// number is that of the environment, or another.
func number(t *testing.T, env string, otherwise int) int {
	t.Helper()
	if s := os.Getenv(env); s != "" {
		if _, err := fmt.Sscan(s, &otherwise); err != nil {
			t.Fatalf("%s=%q: %v", env, s, err)
		}
	}
	return otherwise
}

// upTo is all sequences of up to length deeds.
func upTo(length int) (all [][]string) {
	for n := range length {
		all = append(all, sequences(n+1)...)
	}
	return all
}

// dealt is what a kind of disk gets of sequences that are dealt out to all kinds: each sequence to one, which the seed decides.
func dealt(all [][]string, k sequenceKind, seed uint64) (mine [][]string) {
	kinds := sequenceKinds()
	at := slices.IndexFunc(kinds, func(o sequenceKind) bool { return o.name == k.name })
	for i, s := range all {
		if (uint64(i)+seed)%uint64(len(kinds)) == uint64(at) {
			mine = append(mine, s)
		}
	}
	return mine
}

// eachKind runs a test on every kind of disk, or under the race detector on some; the kinds share the processors. deal is the same
// number for all of them.
func eachKind(t *testing.T, do func(t *testing.T, k sequenceKind, r *rand.Rand, deal uint64)) {
	t.Helper()
	t.Cleanup(chain.SetPiece(16<<10, 48<<10))
	kinds := sequenceKinds()
	chosen, seed := sample(t, len(kinds), 3), seeded(t).Uint64()
	for i, k := range kinds {
		if only := os.Getenv("KIND"); only != "" && only != k.name || !chosen(i) {
			continue
		}
		t.Run(k.name, func(t *testing.T) {
			t.Parallel()
			do(t, k, newRand(seed+uint64(i)), seed>>32)
		})
	}
}

// TestSequences runs sequences of three deeds on a chain of two links of every kind: cut at every operation, with what was not synced
// lost in part or whole and torn; what is found opens, holds what was flushed or something later, keeps its snapshots, and goes on being
// written. The suite runs all of up to three deeds, each on a kind that the seed decides; make crash-long each on every kind. Of these only
// the cuts in the last deed are judged: those before belong to a shorter one. Else it is a sample that the seed decides. DEEDS is another
// length (COUNT samples for each kind from four on), LIMIT how many states are found at one cut.
func TestSequences(t *testing.T) {
	length := number(t, "DEEDS", 3)
	eachKind(t, func(t *testing.T, k sequenceKind, r *rand.Rand, deal uint64) {
		seed, limit, count, from := r.Uint64(), 4, 3, 0
		var all [][]string
		switch {
		case os.Getenv("SEQUENCE") != "":
			all = [][]string{strings.Split(os.Getenv("SEQUENCE"), ",")}
		case long() && length <= 3:
			limit, from, all = 1024, length, upTo(length)
		case long():
			limit, count = 1024, number(t, "COUNT", 100)
		case full() && length <= 3:
			limit, from, all = 1024, length, dealt(upTo(length), k, deal)
		case raceDetector:
			limit, count = 2, 1
		}
		if all == nil {
			for range count {
				all = append(all, randomSequence(r, length))
			}
		}
		limit = number(t, "LIMIT", limit)
		start := newSequence(t, k, seed)
		states := 0
		for _, s := range all {
			n, err := start.again(seed).powerLoss(s, seed, limit, from > 0)
			if err != nil {
				t.Fatalf("KIND=%q SEQUENCE=%q: %v", k.name, strings.Join(s, ","), err)
			}
			states += n
		}
		t.Logf("%d sequences, %d states", len(all), states)
		if states < len(all) {
			t.Errorf("only %d states in %d sequences", states, len(all))
		}
	})
}

// errShortWrite stores half of a write, in whole sectors: a disk tears none, and what of a file the kernel writes in part it tells.
var errShortWrite = fmt.Errorf("sectors are missing: %w", io.ErrShortWrite)

// TestSequenceFailures has every operation of the last deed of sequences fail in turn, in every way: of all of up to three deeds, each on a
// kind that the seed decides, by make crash-long on every kind; those of earlier deeds belong to a shorter one. Else of a few.
func TestSequenceFailures(t *testing.T) {
	eachKind(t, func(t *testing.T, k sequenceKind, r *rand.Rand, deal uint64) {
		seed, failures, least := r.Uint64(), 0, 10
		var all [][]string
		switch {
		case os.Getenv("SEQUENCE") != "":
			all, least = [][]string{strings.Split(os.Getenv("SEQUENCE"), ",")}, 0
		case long():
			all = upTo(min(number(t, "DEEDS", 3), 3))
		case full():
			all = append(sequences(1), dealt(upTo(3), k, deal)...)
		default:
			all = [][]string{randomSequence(r, 1), randomSequence(r, 2)}
		}
		start := newSequence(t, k, seed)
		for i := 0; i < len(all); i++ {
			for _, errno := range []error{syscall.EIO, syscall.ENOSPC, errShortWrite} {
				n, err := start.fail(all[i], errno, seed)
				if err != nil {
					t.Fatalf("KIND=%q SEQUENCE=%q: %v", k.name, strings.Join(all[i], ","), err)
				}
				failures += n
			}
			if i+1 == len(all) && failures < least && len(all) < 50 { // some sequences change nothing
				all = append(all, randomSequence(r, 2))
			}
		}
		t.Logf("%d sequences, %d failures", len(all), failures)
		if failures < least {
			t.Errorf("only %d failures", failures)
		}
	})
}
