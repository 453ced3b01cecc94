package main

import (
	"strings"
	"testing"
)

func TestMachine(t *testing.T) {
	s, err := machine(t.TempDir())
	if err != nil || !strings.Contains(s, " CPUs, ") || !strings.Contains(s, "Linux ") {
		t.Errorf("%q, %v", s, err)
	}
	for in, want := range map[string]string{"6.18.44-vendor-1": "6.18", "5.10-rc3": "5.10-rc3", "6.9": "6.9", "odd": "odd", "7.1+": "7.1"} {
		if got := release(in); got != want {
			t.Errorf("release(%q) = %q, want %q", in, got, want)
		}
	}
}
