package cli

import (
	"io"
	"strings"
	"unicode/utf8"
)

// Table is aligned columns under headings.
type Table struct {
	heads []string
	right []bool
	rows  [][]string
}

// NewTable makes a table; a heading that begins with ">" is of a column of numbers, aligned to the right.
func NewTable(headings ...string) *Table {
	t := &Table{}
	for _, h := range headings {
		name, right := strings.CutPrefix(h, ">")
		t.heads = append(t.heads, name)
		t.right = append(t.right, right)
	}
	return t
}

// Row adds a row; an empty cell shows as "-".
func (t *Table) Row(cells ...string) {
	row := make([]string, len(t.heads))
	for i := range row {
		row[i] = "-"
		if i < len(cells) && cells[i] != "" {
			row[i] = Printable(cells[i])
		}
	}
	t.rows = append(t.rows, row)
}

// Write writes the table; lines have no trailing blanks.
func (t *Table) Write(w io.Writer) error {
	lines := append([][]string{t.heads}, t.rows...)
	width := make([]int, len(t.heads))
	for _, l := range lines {
		for i, c := range l {
			width[i] = max(width[i], utf8.RuneCountInString(c))
		}
	}
	var b strings.Builder
	for _, l := range lines {
		var line strings.Builder
		for i, c := range l {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(c))
			if t.right[i] {
				line.WriteString(pad + c)
			} else {
				line.WriteString(c + pad)
			}
			line.WriteString("  ")
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Fields is "Name: value" lines with aligned values.
type Fields struct{ names, values []string }

// Add adds a line unless value is empty.
func (f *Fields) Add(name, value string) {
	if value != "" {
		f.names = append(f.names, name)
		f.values = append(f.values, Printable(value))
	}
}

// Write writes the lines.
func (f *Fields) Write(w io.Writer) error {
	width := 0
	for _, n := range f.names {
		width = max(width, utf8.RuneCountInString(n))
	}
	var b strings.Builder
	for i, n := range f.names {
		b.WriteString(n + ":" + strings.Repeat(" ", width-utf8.RuneCountInString(n)+1) + f.values[i] + "\n")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Printable replaces what could steer a terminal: names and hints come out of files that others wrote.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}
