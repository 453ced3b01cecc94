package cli

import "strings"

// Span is one run of a disk for a bar: Length bytes of sort Mark.
type Span struct {
	Start, Length int64
	Mark          rune
}

// Bar draws total bytes in width cells. A cell shows the mark that covers most of it, but the background yields to any
// other mark, so that a single allocated grain in a large hole is seen.
func Bar(total int64, width int, background rune, spans []Span) string {
	if total <= 0 || width <= 0 {
		return ""
	}
	cells := make([]map[rune]float64, width)
	per := float64(total) / float64(width) // bytes of a cell
	for _, s := range spans {
		if s.Mark == background || s.Length <= 0 {
			continue
		}
		from, to := float64(s.Start), float64(s.Start+s.Length)
		for i := max(0, min(width-1, int(from/per))); i < width && float64(i)*per < to; i++ {
			if cells[i] == nil {
				cells[i] = map[rune]float64{}
			}
			cells[i][s.Mark] += min(to, float64(i+1)*per) - max(from, float64(i)*per)
		}
	}
	var b strings.Builder
	for _, c := range cells {
		best, most := background, 0.0
		for mark, n := range c {
			if n > most || n == most && mark < best {
				best, most = mark, n
			}
		}
		b.WriteRune(best)
	}
	return b.String()
}
