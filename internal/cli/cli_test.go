package cli

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

func TestParseSize(t *testing.T) {
	for _, tc := range []struct {
		in   string
		want int64
	}{
		{"0", 0}, {"1048576", 1 << 20}, {"10G", 10 << 30}, {"10GiB", 10 << 30}, {"10 gib", 10 << 30}, {"1gb", 1 << 30},
		{"512m", 512 << 20}, {"2048s", 1 << 20}, {"1.5T", 3 << 39}, {" 7KiB ", 7 << 10}, {"4096B", 4096}, {"0.5k", 512},
	} {
		if got, err := ParseSize(tc.in); err != nil || got != tc.want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", tc.in, got, err, tc.want)
		}
	}
	for _, in := range []string{"", "G", "ten", "-1", "-1G", "10X", "10GiBB", "1e3", "0x10", "Inf", "1.2.3", "8192P", "9223372036854775808", "0.3", "1,5G", "+5e2"} {
		if got, err := ParseSize(in); !errors.Is(err, fault.Invalid) {
			t.Errorf("ParseSize(%q) = %d, %v; want Invalid", in, got, err)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 B", 1: "1 B", 1023: "1023 B", 1024: "1 KiB", 1536: "1.5 KiB", 10 << 20: "10 MiB", 10<<20 + 256<<10: "10.25 MiB",
		1<<30 - 1: "1023 MiB", 1 << 30: "1 GiB", 62 << 40: "62 TiB", 1<<20 + 10486: "1.01 MiB", -512: "-512 B",
	} {
		if got := FormatSize(n); got != want {
			t.Errorf("FormatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

// What FormatSize writes never reads as more than the size, and is within a hundredth of the unit (or one unit from 1000 on).
func TestFormatSizeReadsBack(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		n := r.Int64() >> r.IntN(62)
		text := FormatSize(n)
		value, unit, _ := strings.Cut(text, " ")
		f, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("FormatSize(%d) = %q: %v", n, text, err)
		}
		one, err := ParseSize("1" + unit)
		if err != nil {
			t.Fatalf("FormatSize(%d) = %q: %v", n, text, err)
		}
		back, step := f*float64(one), float64(one)/100
		if f >= 1000 {
			step = float64(one)
		}
		if back > float64(n)*(1+1e-9) || float64(n)-back > step*1.01 {
			t.Errorf("FormatSize(%d) = %q, which is %.0f", n, text, back)
		}
	}
}

func TestPercent(t *testing.T) {
	for _, tc := range []struct {
		part, whole int64
		want        string
	}{{0, 0, "0%"}, {0, 5, "0%"}, {1, 1000, "<1%"}, {42, 100, "42%"}, {999999, 1000000, "99%"}, {7, 7, "100%"}} {
		if got := Percent(tc.part, tc.whole); got != tc.want {
			t.Errorf("Percent(%d, %d) = %q, want %q", tc.part, tc.whole, got, tc.want)
		}
	}
}

func TestTable(t *testing.T) {
	tab := NewTable("NAME", ">SIZE", "STATE")
	tab.Row("disk.vmdk", "10 GiB", "ok")
	tab.Row("größer\x1b[31m", "1 B")
	var b bytes.Buffer
	if err := tab.Write(&b); err != nil {
		t.Fatal(err)
	}
	want := "NAME           SIZE  STATE\n" +
		"disk.vmdk    10 GiB  ok\n" +
		"größer?[31m     1 B  -\n"
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestFields(t *testing.T) {
	var f Fields
	f.Add("Capacity", "10 GiB")
	f.Add("Empty", "")
	f.Add("CID", "fffffffe")
	var b bytes.Buffer
	if err := f.Write(&b); err != nil {
		t.Fatal(err)
	}
	if want := "Capacity: 10 GiB\nCID:      fffffffe\n"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
}

func TestBar(t *testing.T) {
	for _, tc := range []struct {
		total int64
		width int
		spans []Span
		want  string
	}{
		{100, 10, nil, ".........."},
		{100, 10, []Span{{0, 100, '#'}}, "##########"},
		{1 << 40, 10, []Span{{1<<39 + 1, 1, '#'}}, ".....#...."},
		{100, 10, []Span{{0, 15, '#'}, {15, 5, '0'}, {99, 1, '0'}}, "##.......0"},
		{100, 10, []Span{{10, 2, '#'}, {12, 8, '0'}}, ".0........"},
		{3, 10, []Span{{1, 1, '#'}}, "...####..."},
		{0, 10, nil, ""},
	} {
		if got := Bar(tc.total, tc.width, '.', tc.spans); got != tc.want {
			t.Errorf("Bar(%d, %d, %v) = %q, want %q", tc.total, tc.width, tc.spans, got, tc.want)
		}
	}
}

func TestReport(t *testing.T) {
	for _, tc := range []struct {
		err  error
		code int
		text string
	}{
		{nil, 0, ""},
		{Status(4), 4, ""},
		{fault.New(fault.InUse, "Detach it.", "disk %s is attached", "x"), 5, "Error: disk x is attached\nRemedy: Detach it.\n"},
		{fmt.Errorf("write: %w", syscall.ENOSPC), 1, "Error: write: no space left on device\nRemedy: " + remedies[fault.NoSpace] + "\n"},
		{Usage{errors.New("unknown flag: --x")}, 2, "Error: unknown flag: --x\n"},
		{fault.New(fault.Damaged, "restore it", "a: %w", errors.Join(fault.New(fault.Damaged, "restore it", "b is bad"))), 3, "Error: a: b is bad\nRemedy: Restore it.\n"},
		{fault.New(fault.Damaged, "", "bad\x1b"), 3, "Error: bad?\nRemedy: " + remedies[fault.Damaged] + "\n"},
	} {
		var b bytes.Buffer
		if code := Report(&b, tc.err); code != tc.code || b.String() != tc.text {
			t.Errorf("Report(%v) = %d %q, want %d %q", tc.err, code, b.String(), tc.code, tc.text)
		}
	}
}

func TestProgressLine(t *testing.T) {
	now := time.Unix(1000, 0)
	p := &Progress{what: "convert", total: 4 << 30, columns: 100, now: func() time.Time { return now }, start: now}
	p.done = 1 << 30
	now = now.Add(10 * time.Second)
	want := "convert [##########..............................]  25%  1 GiB of 4 GiB  102.39 MiB/s  30 s left"
	if got := p.line(now); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	p.columns = 30
	if got := p.line(now); len(got) >= 30 {
		t.Errorf("line of %d characters on 30 columns: %q", len(got), got)
	}
}

func TestProgressIsSilentWithoutATerminal(t *testing.T) {
	var b bytes.Buffer
	p := NewProgress(&b, "convert", 10)
	p.Add(5)
	p.Done()
	if b.Len() > 0 {
		t.Errorf("wrote %q", b.String())
	}
}

func TestFormatWrite(t *testing.T) {
	data := map[string]any{"name": "a<b", "size": int64(1 << 40)}
	for f, want := range map[Format]string{
		JSONFormat: "{\n  \"name\": \"a<b\",\n  \"size\": 1099511627776\n}\n",
		YAMLFormat: "name: a<b\nsize: 1099511627776\n",
	} {
		var b bytes.Buffer
		if err := f.Write(&b, data, nil); err != nil || b.String() != want {
			t.Errorf("%s: got %q, %v; want %q", f, b.String(), err, want)
		}
	}
	var f Format
	if err := f.Set("xml"); !errors.Is(err, fault.Invalid) {
		t.Errorf("Set(xml) = %v", err)
	}
}
