package vmdkctl

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
)

// ChainInfo is a disk's links, base first, as they are; nothing is left out because it is wrong.
type chainInfo struct {
	Capacity  int64       `json:"capacity"`  // bytes, of the head
	Allocated int64       `json:"allocated"` // bytes, of all links
	Links     []chainLink `json:"links"`
	Volume    *volumeInfo `json:"volume,omitempty"`
}

type chainLink struct {
	linkInfo
	// ParentMatches says whether parentCID is the parent's CID; true for a base.
	ParentMatches bool `json:"parentMatches"`
	// Snapshots that end at this link.
	Snapshots []string `json:"snapshots,omitempty"`
	// Unneeded says that consolidation would make one link of this one and the one above.
	Unneeded bool `json:"unneeded,omitempty"`
}

func (a *app) chainCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "chain DISK",
		Short: "Draw a disk's chain of links",
		Long: `Draw a disk's chain, head on top, base at the bottom: what each link is, what its files use, and whether the content IDs
that bind a child to its parent match. Of a volume it shows which snapshots end at which link, and which links consolidation
would save. Takes no lock.`,
		Example:           "  vmdkctl chain disk-000001.vmdk\n  vmdkctl chain --datastore /var/lib/vmdk-csi/default pvc-4711",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePoints(1),
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := a.findPoint(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := describeChain(f)
			if err != nil {
				return err
			}
			return a.format.Write(a.out, info, func(w io.Writer) error { return drawChain(w, info) })
		},
	}
}

func describeChain(f *found) (*chainInfo, error) {
	c := &chainInfo{}
	for i := range f.Names {
		l, err := describe(f, i)
		if err != nil {
			return nil, err
		}
		c.Volume, l.Volume = l.Volume, nil
		c.Capacity = l.Capacity
		c.Allocated += l.Allocated
		link := chainLink{linkInfo: *l, ParentMatches: i == 0 || l.ParentCID == c.Links[i-1].CID}
		if f.Volume != nil {
			link.Snapshots = f.snapshotsAt(i)
			link.Unneeded = i < len(f.Names)-1 && len(link.Snapshots) == 0
		}
		c.Links = append(c.Links, link)
	}
	return c, nil
}

// SnapshotsAt are the names of the snapshots that end at link i.
func (f *found) snapshotsAt(i int) []string {
	var names []string
	for _, p := range f.Volume.Manifest.Snapshots {
		if p.Link == f.Names[i] {
			names = append(names, p.Name)
		}
	}
	return names
}

// DrawChain draws rows of links, and between them what binds them.
//
//	head ┌ disk-000001.vmdk  monolithicSparse  10 GiB  152 KiB allocated  CID e1c1fb7d
//	     │   parent CID afd6bb84 matches
//	base └ disk.vmdk         monolithicFlat    10 GiB  740 KiB allocated  CID afd6bb84
func drawChain(w io.Writer, c *chainInfo) error {
	rows := cli.NewTable("", "", ">", ">", "", "")
	for i := len(c.Links) - 1; i >= 0; i-- {
		l := c.Links[i]
		rows.Row(baseName(l.File), l.Type, cli.FormatSize(l.Capacity), cli.FormatSize(l.Allocated)+" allocated", "CID "+l.CID, l.mark())
	}
	var text strings.Builder
	if err := rows.Write(&text); err != nil {
		return err
	}
	lines := strings.Split(strings.TrimSuffix(text.String(), "\n"), "\n")[1:] // without the empty headings
	var b strings.Builder
	for n, line := range lines {
		i := len(c.Links) - 1 - n
		fmt.Fprintf(&b, "%s %s\n", stem(i, len(c.Links)), strings.TrimRight(line, " "))
		if i > 0 {
			fmt.Fprintf(&b, "     │   %s\n", bond(c.Links[i-1], c.Links[i]))
		}
	}
	fmt.Fprintf(&b, "\n%s, %s allocated of %s\n", count(len(c.Links), "link"), cli.FormatSize(c.Allocated), cli.FormatSize(c.Capacity))
	if c.steps() {
		b.WriteString("VMware's products refuse a chain whose links differ in capacity; qemu and the driver do not. ")
		b.WriteString("Consolidating or flattening it, or a full copy, cures that.\n")
	}
	if v := c.Volume; v != nil {
		fmt.Fprintf(&b, "volume %s (%s): %s\n", cli.Printable(v.Name), v.ID, v.owner())
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Steps says that the links' capacities differ.
func (c *chainInfo) steps() bool {
	return slices.ContainsFunc(c.Links, func(l chainLink) bool { return l.Capacity != c.Capacity })
}

// Stem is the left margin of link i of n.
func stem(i, n int) string {
	switch {
	case n == 1:
		return "disk ─"
	case i == n-1:
		return "head ┌"
	case i == 0:
		return "base └"
	}
	return "     ├"
}

// Bond says what holds child to parent, or does not.
func bond(parent, child chainLink) string {
	s := "parent CID " + child.ParentCID + " matches"
	if !child.ParentMatches {
		s = "parent CID " + child.ParentCID + " DOES NOT MATCH: the parent was modified after this link was made"
	}
	if child.Capacity != parent.Capacity {
		s += fmt.Sprintf("; capacity steps from %s to %s", cli.FormatSize(parent.Capacity), cli.FormatSize(child.Capacity))
	}
	return s
}

// Mark is what is to be known about a link at a glance.
func (l chainLink) mark() string {
	var marks []string
	for _, n := range l.Snapshots {
		marks = append(marks, "snapshot "+n)
	}
	if l.Unneeded {
		marks = append(marks, "can be consolidated")
	}
	if l.Live {
		marks = append(marks, "live")
	} else if l.Unclean {
		marks = append(marks, "not closed cleanly")
	}
	for _, x := range l.Extents {
		if x.Links > 1 {
			marks = append(marks, "extents shared with other disks")
			break
		}
	}
	if len(marks) == 0 {
		return " "
	}
	return strings.Join(marks, ", ")
}

func baseName(path string) string { return path[strings.LastIndexByte(path, '/')+1:] }

func count(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
