package main

import (
	"bytes"
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/vmdk-csi/vmdk-csi/internal/cli/vmdkctl"
	"github.com/vmdk-csi/vmdk-csi/test/guest/call"
)

// running is a vmdkctl that was not ended yet.
type running struct {
	end  context.CancelFunc
	done chan int
	out  buffer
}

// buffer may be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// Begin runs vmdkctl until it has said which device it made, or has ended.
func (g *Guest) Begin(c call.Command, r *call.Command) error {
	ctx, end := context.WithCancel(context.Background())
	v := &running{end: end, done: make(chan int, 1)}
	go func() { v.done <- vmdkctl.Main(ctx, append([]string{"-o", "json"}, c.Args...), &v.out, &v.out) }()
	for {
		var made struct{ Device string }
		if json.Unmarshal([]byte(v.out.String()), &made) == nil && made.Device != "" {
			g.running = v
			*r = call.Command{Device: made.Device, Output: v.out.String()}
			return nil
		}
		select {
		case code := <-v.done:
			end()
			*r = call.Command{Output: v.out.String(), Code: code}
			return nil
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Interrupt asks what Begin began to end; End waits for it.
func (g *Guest) Interrupt(call.Text, *call.Text) error { g.running.end(); return nil }

// End does both.
func (g *Guest) End(_ call.Text, r *call.Command) error {
	g.running.end()
	*r = call.Command{Code: <-g.running.done, Output: g.running.out.String()}
	return nil
}
