package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Terminal says whether w is one, and how many columns it has.
func Terminal(w io.Writer) (columns int, ok bool) {
	f, isFile := w.(*os.File)
	if !isFile {
		return 0, false
	}
	if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err != nil {
		return 0, false
	}
	columns = 80
	if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
		columns = int(size.Col)
	}
	return columns, true
}

// Progress shows how far a long piece of work is: bar, amount, rate, time left. It writes only to a terminal.
type Progress struct {
	what    string
	total   int64
	done    int64
	out     io.Writer // nil: silent
	columns int
	now     func() time.Time
	start   time.Time
	drawn   time.Time
}

// NewProgress starts a progress line for total bytes on w, when w is a terminal.
func NewProgress(w io.Writer, what string, total int64) *Progress {
	p := &Progress{what: Printable(what), total: total, now: time.Now}
	if columns, ok := Terminal(w); ok {
		p.out, p.columns = w, columns
	}
	p.start = p.now()
	return p
}

// Add says that n more bytes are done.
func (p *Progress) Add(n int64) {
	p.done += n
	if now := p.now(); p.out != nil && now.Sub(p.drawn) >= 100*time.Millisecond {
		p.drawn = now
		fmt.Fprintf(p.out, "\r%s\x1b[K", p.line(now))
	}
}

// Set says that done of total bytes are done; the total may be news.
func (p *Progress) Set(done, total int64) {
	p.total = total
	p.Add(done - p.done)
}

// Done removes the line: what was done is told by the command's answer.
func (p *Progress) Done() {
	if p.out != nil {
		fmt.Fprint(p.out, "\r\x1b[K")
	}
}

// Elapsed is the time since the start.
func (p *Progress) Elapsed() time.Duration { return p.now().Sub(p.start) }

func (p *Progress) line(now time.Time) string {
	elapsed := now.Sub(p.start).Seconds()
	rate := 0.0
	if elapsed > 0 {
		rate = float64(p.done) / elapsed
	}
	text := fmt.Sprintf("%4s  %s of %s", Percent(p.done, p.total), FormatSize(p.done), FormatSize(p.total))
	if elapsed >= 1 && rate >= 1 {
		left := time.Duration(float64(p.total-p.done) / rate * float64(time.Second))
		text += fmt.Sprintf("  %s/s  %s left", FormatSize(int64(rate)), FormatDuration(left))
	}
	line := p.what
	if room := p.columns - len(line) - len(text) - 6; room >= 10 {
		full := 0
		if p.total > 0 {
			full = int(float64(min(room, 40)) * float64(p.done) / float64(p.total))
		}
		line += " [" + strings.Repeat("#", full) + strings.Repeat(".", max(0, min(room, 40)-full)) + "]"
	}
	line += " " + text
	if len(line) >= p.columns && p.columns > 1 {
		line = line[:p.columns-1]
	}
	return line
}

// FormatDuration is a time for a person: "0.3 s", "12 s", "3 min 5 s", "2 h 4 min".
func FormatDuration(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%d min %d s", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%d h %d min", int(d.Hours()), int(d.Minutes())%60)
}
