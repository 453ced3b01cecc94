package main

import (
	"reflect"
	"testing"
	"time"
)

func TestPercentile(t *testing.T) {
	hundred := make([]int64, 100)
	for i := range hundred {
		hundred[i] = int64(100 - i) // not sorted
	}
	for _, tc := range []struct {
		values []int64
		p      float64
		want   int64
	}{
		{nil, 50, 0}, {[]int64{7}, 0, 7}, {[]int64{7}, 99, 7}, {[]int64{2, 1}, 50, 1}, {[]int64{3, 1, 2}, 50, 2},
		{hundred, 50, 50}, {hundred, 99, 99}, {hundred, 99.5, 100}, {hundred, 100, 100}, {hundred, 0, 1},
	} {
		if got := percentile(tc.values, tc.p); got != tc.want {
			t.Errorf("percentile %v of %d values is %d, want %d", tc.p, len(tc.values), got, tc.want)
		}
	}
	if hundred[0] != 100 {
		t.Error("the values were sorted in place")
	}
	if got := median([]float64{1, 9, 2}); got != 2 {
		t.Errorf("median = %v", got)
	}
}

func TestLook(t *testing.T) {
	ms := time.Millisecond
	ops := []op{
		{0, 5 * ms},        // before
		{4 * ms, 11 * ms},  // reaches in: its end counts
		{12 * ms, 13 * ms}, // inside
		{13 * ms, 14 * ms}, // inside
		{15 * ms, 90 * ms}, // reaches out: it was under way, and is the longest
		{30 * ms, 31 * ms}, // after
	}
	got := look(ops, 10*ms, 20*ms)
	want := window{ops: 3, latencies: []time.Duration{7 * ms, ms, ms}, longest: 75 * ms, length: 10 * ms}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("look = %+v, want %+v", got, want)
	}
	if r := got.rate(); r != 300 {
		t.Errorf("rate = %v, want 300", r)
	}
	if r := (window{ops: 1}).rate(); r != 0 {
		t.Errorf("rate of no time = %v", r)
	}
	if s := speed(3<<20, 2*time.Second); s != 1.5 {
		t.Errorf("speed = %v", s)
	}
	if s := speed(1, 0); s != 0 {
		t.Errorf("speed in no time = %v", s)
	}
}
