package vmdkctl

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vmdk-csi/vmdk-csi/internal/cli"
	"github.com/vmdk-csi/vmdk-csi/pkg/vmdk/chain"
)

// MapEntry has the fields of `qemu-img map --output=json`, so that a program can read either.
type mapEntry struct {
	Start   int64  `json:"start"`
	Length  int64  `json:"length"`
	Depth   int    `json:"depth"`
	Present bool   `json:"present"`
	Zero    bool   `json:"zero"`
	Data    bool   `json:"data"`
	Offset  *int64 `json:"offset,omitempty"`
}

func (a *app) mapCommand() *cobra.Command {
	var physical bool
	cmd := &cobra.Command{
		Use:   "map DISK",
		Short: "Show which parts of a disk are allocated, and in which link",
		Long: `Show which parts of a disk are allocated, in which link of its chain, and where in which file. The JSON output has the
fields of qemu-img map --output=json. Takes no lock; of a live disk the parts are those of different moments.

With --physical it shows where on the block device below the file system the disk is, so that a program that reaches the device can read
it there. That is best effort, for ext4 and XFS: the kernel promises nothing about a file system that is mounted. What cannot be trusted
is refused with its reason (docs/lun.md). Nothing may change the disk or its files while the places are used, and nothing may be
written there.`,
		Example:           "  vmdkctl map disk.vmdk\n  vmdkctl map disk.vmdk -o json\n  vmdkctl map --physical disk.vmdk -o json",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePoints(1),
		RunE: func(_ *cobra.Command, args []string) error {
			f, err := a.findPoint(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			c, err := chain.Open(f.Dir, f.refs(), chain.Options{ReadOnly: true, Devices: f.Devices, IgnoreCID: f.IgnoreCID})
			if err != nil {
				return err
			}
			defer c.Close()
			if physical {
				return a.physicalMap(f, c)
			}
			var all []chain.Extent
			for x, err := range c.Map(0, c.Size()) {
				if err != nil {
					return err
				}
				all = append(all, x)
			}
			return a.format.Write(a.out, qemuMap(all), func(w io.Writer) error {
				return drawMap(w, f.Names, c.Size(), all, a.columns())
			})
		},
	}
	cmd.Flags().BoolVar(&physical, "physical", false, "show places on the block device below (ext4 and XFS, best effort)")
	return cmd
}

// Columns is how wide a picture on stdout may be.
func (a *app) columns() int {
	if n, ok := cli.Terminal(a.out); ok {
		return n
	}
	return 80
}

// QemuMap says it as qemu 7.2 does: a hole of a flat file is data that reads as zeros, because it has a place in a file.
func qemuMap(all []chain.Extent) []mapEntry {
	out := make([]mapEntry, len(all))
	for i, x := range all {
		out[i] = mapEntry{Start: x.Start, Length: x.Length, Depth: x.Depth, Present: x.Present, Zero: x.Zero, Data: x.File != ""}
		if x.File != "" {
			out[i].Offset = &all[i].Offset
		}
	}
	return out
}

const (
	markHole = '.'
	markZero = '0'
	markHead = '#'
)

// DepthMark is the mark of data that lies depth links below the head.
func depthMark(depth int) rune {
	switch {
	case depth == 0:
		return markHead
	case depth <= 26:
		return 'a' + rune(depth-1)
	}
	return '+'
}

func mark(x chain.Extent) rune {
	switch {
	case !x.Present, x.Zero && x.File != "":
		return markHole
	case x.Zero:
		return markZero
	}
	return depthMark(x.Depth)
}

// DrawMap draws a bar of the disk, its legend, and the table of what is not a hole.
func drawMap(w io.Writer, names []string, size int64, all []chain.Extent, columns int) error {
	var spans []cli.Span
	data := make([]int64, len(names)) // bytes of data per link
	zeroed := int64(0)
	table := cli.NewTable(">START", ">LENGTH", "WHAT", "LINK", "FILE", ">AT")
	for _, x := range all {
		m := mark(x)
		spans = append(spans, cli.Span{Start: x.Start, Length: x.Length, Mark: m})
		switch m {
		case markHole:
			continue
		case markZero:
			zeroed += x.Length
			table.Row(exact(x.Start), exact(x.Length), "zeros", names[x.Link])
		default:
			data[x.Link] += x.Length
			table.Row(exact(x.Start), exact(x.Length), "data", names[x.Link], x.File, exact(x.Offset))
		}
	}
	width := max(20, min(columns, 120)-2)
	fmt.Fprintf(w, "[%s]\n", cli.Bar(size, width, markHole, spans))
	fmt.Fprintf(w, " 0%*s\n\n", width-1, cli.FormatSize(size))
	if err := legend(w, names, data, zeroed, size); err != nil {
		return err
	}
	fmt.Fprintln(w)
	return table.Write(w)
}

func legend(w io.Writer, names []string, data []int64, zeroed, size int64) error {
	rest := size - zeroed
	t := cli.NewTable("", ">", ">", "")
	row := func(m rune, n int64, what string) { t.Row(string(m), cli.FormatSize(n), cli.Percent(n, size), what) }
	for i := len(names) - 1; i >= 0; i-- {
		rest -= data[i]
		row(depthMark(len(names)-1-i), data[i], "data in "+names[i])
	}
	if zeroed > 0 {
		row(markZero, zeroed, "zeros, written as such")
	}
	row(markHole, rest, "not allocated, reads as zeros")
	var b strings.Builder
	if err := t.Write(&b); err != nil {
		return err
	}
	_, lines, _ := strings.Cut(b.String(), "\n") // without the empty headings
	_, err := io.WriteString(w, lines)
	return err
}

// Exact is a number of bytes in the largest unit that divides it.
func exact(n int64) string {
	switch {
	case n == 0:
		return "0"
	case n%(1<<30) == 0:
		return fmt.Sprintf("%d GiB", n>>30)
	case n%(1<<20) == 0:
		return fmt.Sprintf("%d MiB", n>>20)
	case n%(1<<10) == 0:
		return fmt.Sprintf("%d KiB", n>>10)
	}
	return fmt.Sprintf("%d B", n)
}
