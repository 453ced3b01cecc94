package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// runner runs stages of suites. mu guards out and sum, so that lines of lanes do not mix.
type runner struct {
	logs    string
	out     io.Writer
	cluster fixture

	mu  sync.Mutex
	sum result
}

// fixture is what several suites need and the runner looks after.
type fixture interface {
	// begin starts making it ready, and returns at once.
	begin(ctx context.Context)
	// ready waits for that. After an error it is not there, and output tells why.
	ready() (output []string, err error)
	// environment tells a suite that it is there and not the suite's to remove.
	environment() []string
	// end removes it, whatever state it is in; passed: nobody needs its files to look for a failure.
	end(passed bool) error
}

func (r *runner) printf(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format, args...)
}

// runAll returns the exit status: 1 unless tests passed and none failed.
func (r *runner) runAll(ctx context.Context, todo [][]lane) int {
	began := time.Now()
	atFirst := observe(everywhere)
	lastUse := -1
	for i, lanes := range todo {
		if slices.ContainsFunc(lanes, lane.needsCluster) {
			lastUse = i
		}
	}
	if lastUse >= 0 {
		r.cluster.begin(ctx)
	}
	for i, lanes := range todo {
		if ctx.Err() == nil {
			r.runStage(ctx, fmt.Sprintf("%d/%d", i+1, len(todo)), lanes)
		}
		if i == lastUse {
			r.endCluster(ctx, atFirst)
		}
	}
	return r.close(ctx, began)
}

func (l lane) needsCluster() bool {
	return slices.ContainsFunc(l, func(s suite) bool { return s.cluster })
}

func (r *runner) runStage(ctx context.Context, number string, lanes []lane) {
	var names []string
	for _, l := range lanes {
		for _, s := range l {
			names = append(names, s.name)
			r.printf("== %s %s: %s\n", number, s.name, s.about)
		}
	}
	before := observe(ownNamespace)
	var wg sync.WaitGroup
	for _, l := range lanes {
		wg.Go(func() { r.runLane(ctx, l, len(names) > 1) })
	}
	wg.Wait()
	r.add(leaks(strings.Join(names, "+")+"/leaks", before.leaked(ctx, ownNamespace)))
}

func (r *runner) runLane(ctx context.Context, l lane, beside bool) {
	for _, s := range l {
		if ctx.Err() != nil {
			return
		}
		if s.cluster {
			if output, err := r.cluster.ready(); err != nil {
				r.add(result{failed: 1, failures: []failure{{s.name + " (no cluster)", append(output, err.Error())}}})
				continue
			}
			s.env = append(slices.Clone(s.env), r.cluster.environment()...)
		}
		prefix := "  "
		if beside {
			prefix = fmt.Sprintf("  %-9s ", s.name)
		}
		start := time.Now()
		res := s.run(ctx, filepath.Join(r.logs, s.name+".log"), func(line string) { r.printf("%s%s\n", prefix, line) })
		r.add(res)
		r.printf("-- %s: %d passed, %d failed, %d skipped in %s\n", s.name, res.passed, res.failed, len(res.skips),
			time.Since(start).Round(time.Second))
	}
}

func (r *runner) endCluster(ctx context.Context, atFirst world) {
	r.mu.Lock()
	passed := r.sum.failed == 0 && ctx.Err() == nil
	r.mu.Unlock()
	if os.Getenv("VMDK_CSI_E2E_KEEP") != "" {
		return
	}
	start := time.Now()
	if err := r.cluster.end(passed); err != nil {
		r.add(result{failed: 1, failures: []failure{{"cluster (not removed)", []string{err.Error()}}}})
		return
	}
	r.add(leaks("cluster/leaks", atFirst.leaked(ctx, everywhere)))
	r.printf("-- cluster removed in %s\n", time.Since(start).Round(time.Second))
}

// leaks is the result of looking for leaks, which is a test too.
func leaks(name string, found []string) result {
	if len(found) > 0 {
		return result{failed: 1, failures: []failure{{name, found}}}
	}
	return result{passed: 1}
}

// add counts a result and shows at once what failed.
func (r *runner) add(res result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	res.report(r.out)
	r.sum.add(res)
}

func (r *runner) close(ctx context.Context, began time.Time) int {
	if ctx.Err() != nil {
		r.printf("interrupted\n")
		r.sum.failed++
	}
	r.printf("\nAll suites took %s; logs are in %s\n", time.Since(began).Round(time.Second), r.logs)
	for _, f := range r.sum.failures {
		r.printf("failed: %s\n", f.name)
	}
	for _, k := range r.sum.skips {
		r.printf("skipped: %s: %s\n", k.name, k.reason)
	}
	r.printf("%d passed, %d failed, %d skipped\n", r.sum.passed, r.sum.failed, len(r.sum.skips))
	if r.sum.failed > 0 || r.sum.passed == 0 {
		return 1
	}
	return 0
}
