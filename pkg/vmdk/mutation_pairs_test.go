package vmdk

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"
)

// harm is a mutation that is ready to be applied to an image.
type harm struct {
	mutation
	on func(im *image)
}

// TestOtherMutationPairs is TestMutationPairs for what is not a hosted sparse extent.
func TestOtherMutationPairs(t *testing.T) {
	rnd := rounds(t)
	n := 20
	if raceDetector {
		n = 3
	}
	if s, err := strconv.Atoi(os.Getenv("PAIRS")); err == nil {
		n = s
	}
	for _, k := range []struct {
		name    string
		healthy *image
		harms   []harm
	}{
		{"COWD", cowdImage(t, 1, true), cowdHarms(1)},
		{"COWD with large grains", cowdImage(t, 8, false), cowdHarms(8)},
		{"stream", streamImage(t, false), streamHarms(false)},
		{"stream with a footer", streamImage(t, true), streamHarms(true)},
		{"SESparse", seImage(t), seHarms()},
	} {
		for pairs, tries := 0, 0; pairs < n; tries++ {
			if tries == 100*n {
				t.Fatalf("%s: only %d pairs in %d tries", k.name, pairs, tries)
			}
			a, b := k.harms[rnd.IntN(len(k.harms))], k.harms[rnd.IntN(len(k.harms))]
			if a.number == 5 || b.number == 5 || a.number == 20 || b.number == 20 || a.grain >= 0 && a.grain == b.grain || a.name == b.name {
				continue
			}
			im := harmed(t, k.healthy, a, b)
			if im == nil {
				continue
			}
			pairs++
			t.Run(fmt.Sprintf("%s/%s and %s", k.name, a.name, b.name), func(t *testing.T) {
				im.t = t
				rep, err := Check(context.Background(), im.dir(), imageName)
				if err != nil {
					t.Fatal(err)
				}
				worst := worstOf(rep.Problems)
				lost := has(&rep, StreamFooterDamaged) // and with it the directory
				if len(rep.Problems) == 0 || worst < max(a.sev, b.sev) && !lost {
					t.Errorf("not found: %v", rep.Problems)
				}
				// The bitmap is compared 64 grains at a time; a larger capacity makes room for more grains.
				either := func(c Code) bool { return a.code == c || b.code == c }
				hidden := lost || worst == Fatal || has(&rep, MetadataOverlaps) || a.grain >= 0 && b.grain >= 0 ||
					either(BitmapDiffers) || either(CapacityDiffers) && either(GrainBeyondCapacity)
				if !hidden && (!has(&rep, a.code) || !has(&rep, b.code)) {
					t.Errorf("not both found: %v", rep.Problems)
				}
				tryRepair(t, im, k.healthy.content)
			})
		}
	}
}

// harmed is the image with both harms, nil if one undoes or hides the other.
func harmed(t *testing.T, healthy *image, a, b harm) *image {
	t.Helper()
	one, two, im := healthy.clone(), healthy.clone(), healthy.clone()
	one.t, two.t, im.t = t, t, t
	a.on(one)
	b.on(two)
	for name, h := range healthy.files {
		x, y := one.files[name], two.files[name]
		if len(x) != len(h) && len(y) != len(h) || clash(h, x, y) {
			return nil
		}
	}
	a.on(im)
	if len(im.files[imageName]) != len(healthy.files[imageName]) {
		return nil // there is nothing left for the second
	}
	b.on(im)
	return im
}

// clash tells that both x and y differ from h in some sector.
func clash(h, x, y []byte) bool {
	for at := 0; at+8 <= min(len(h), len(x), len(y)); at += 8 {
		if !bytes.Equal(h[at:at+8], x[at:at+8]) && !bytes.Equal(h[at:at+8], y[at:at+8]) {
			return true
		}
	}
	return false
}

func cowdHarms(grain int64) (out []harm) {
	for _, m := range cowdMutations {
		out = append(out, harm{m.mutation, func(im *image) {
			m.on(cowdAt{slices.Clone(cowdImage(im.t, grain, im.child).files["disk-delta.vmdk"]), im, grain})
		}})
	}
	return out
}

func streamHarms(footer bool) (out []harm) {
	all := slices.Clone(streamMutations)
	if footer {
		all = append(all, footerMutations...)
	}
	for _, m := range all {
		out = append(out, harm{m.mutation, func(im *image) {
			x := newStreamAt(streamImage(im.t, footer), footer)
			x.im = im
			m.on(x)
		}})
	}
	return out
}

func seHarms() (out []harm) {
	for _, m := range seMutations {
		out = append(out, harm{m.mutation, func(im *image) { m.on(seAt{seImage(im.t).files[seFile], im}) }})
	}
	return out
}
