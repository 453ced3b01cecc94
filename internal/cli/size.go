package cli

import (
	"math"
	"strconv"
	"strings"

	"github.com/vmdk-csi/vmdk-csi/pkg/fault"
)

var sizeUnits = []struct {
	suffix string
	bytes  int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40}, {"PiB", 1 << 50},
}

// ParseSize reads a size as people write it: "10G", "10GiB", "1.5 TiB", "512m", "1048576" (bytes), "2048s" (sectors of
// 512 bytes). Letters are powers of 1024, as in qemu-img and vmware-vdiskmanager; case does not matter.
// The kind of its error is fault.Invalid.
func ParseSize(s string) (int64, error) {
	bad := func(why string) (int64, error) {
		return 0, fault.New(fault.Invalid, "Write a number and a unit: 512M, 10G, 1.5TiB; without a unit it is bytes.",
			"%q is not a size: %s", s, why)
	}
	t := strings.ToLower(strings.TrimSpace(s))
	end := len(t)
	for end > 0 && (t[end-1] < '0' || t[end-1] > '9') && t[end-1] != '.' {
		end--
	}
	number, unit := t[:end], strings.TrimSpace(t[end:])
	factor := int64(0)
	switch unit {
	case "", "b":
		factor = 1
	case "s":
		factor = 512
	default:
		for _, u := range sizeUnits {
			l := strings.ToLower(u.suffix)
			if unit == l || unit == l[:1] || unit == l[:1]+"b" {
				factor = u.bytes
			}
		}
	}
	if factor == 0 {
		return bad("unknown unit " + strconv.Quote(unit))
	}
	if strings.Trim(number, "0123456789.") != "" {
		return bad("no number") // no signs, exponents, infinities or hexadecimals
	}
	if n, err := strconv.ParseInt(number, 10, 64); err == nil {
		if n > math.MaxInt64/factor {
			return bad("too large")
		}
		return n * factor, nil
	}
	f, err := strconv.ParseFloat(number, 64)
	switch {
	case err != nil:
		return bad("no number")
	case f*float64(factor) >= math.MaxInt64:
		return bad("too large")
	case f*float64(factor) != math.Trunc(f*float64(factor)):
		return bad("not a whole number of bytes")
	}
	return int64(f * float64(factor)), nil
}

// FormatSize writes bytes for a person: the largest unit that leaves at least 1, with up to two decimals: "10 GiB", "1.5 GiB",
// "20.25 MiB", "0 B". What would be rounded is cut, so that a disk never looks larger than it is.
func FormatSize(n int64) string {
	if n < 0 {
		return "-" + FormatSize(-n)
	}
	if n < 1<<10 {
		return strconv.FormatInt(n, 10) + " B"
	}
	u := sizeUnits[0]
	for _, next := range sizeUnits[1:] {
		if n < next.bytes {
			break
		}
		u = next
	}
	whole, rest := n/u.bytes, n%u.bytes
	text := strconv.FormatInt(whole, 10)
	if hundredths := int64(float64(rest) / float64(u.bytes) * 100); hundredths > 0 && whole < 1000 {
		dec := strconv.FormatInt(hundredths+100, 10)[1:]
		text += "." + strings.TrimRight(dec, "0")
	}
	return text + " " + u.suffix
}

// Percent is part of whole for a person: "0%", "<1%", "42%", "100%" only when it is all.
func Percent(part, whole int64) string {
	switch {
	case whole <= 0 || part <= 0:
		return "0%"
	case part >= whole:
		return "100%"
	}
	p := int64(float64(part) / float64(whole) * 100)
	if p == 0 {
		return "<1%"
	}
	return strconv.FormatInt(min(p, 99), 10) + "%"
}
