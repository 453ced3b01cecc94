package crash

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/vmdk-csi/vmdk-csi/pkg/datastore"
)

// volumeDir is a volume's directory and its manifest.
type volumeDir struct {
	*datastore.Volume
	m datastore.Manifest
}

// compareFiles: the names are those that the manifest names, the record and at most two manifests.
func (v *volumeDir) compareFiles(names []string) error {
	want := map[string]bool{"record.json": true}
	for _, l := range v.m.Links {
		want[l.Descriptor] = true
		for _, e := range l.Extents {
			want[e] = true
		}
	}
	manifests := 0
	for _, n := range names {
		var epoch, seq int64
		if c, _ := fmt.Sscanf(n, "manifest-%d-%d.json", &epoch, &seq); c == 2 {
			manifests++
		} else if !want[n] {
			return fmt.Errorf("%s is left over; the manifest names %v", n, v.m.Links)
		}
		delete(want, n)
	}
	if len(want) > 0 || manifests > 2 {
		return fmt.Errorf("missing %v, %d manifests in %v", want, manifests, names)
	}
	return nil
}

func sameLink(a, b datastore.Link) bool {
	return a.Descriptor == b.Descriptor && slices.Equal(a.Extents, b.Extents) && a.Type == b.Type &&
		a.CID == b.CID && a.ParentCID == b.ParentCID && a.Size == b.Size
}

// sortStories: short ones first, so that what breaks is told by its simplest case; always the same order.
func sortStories(all []story) {
	slices.SortFunc(all, func(a, b story) int {
		return cmp.Or(cmp.Compare(len(a.steps), len(b.steps)), cmp.Compare(a.String(), b.String()))
	})
}
