package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"
)

func main() {
	list := flag.Bool("list", false, "list the suites and end")
	logs := flag.String("logs", filepath.Join(cacheDir(), "logs"), "directory for each suite's whole output")
	flag.Parse()
	if *list {
		for _, s := range suites() {
			fmt.Printf("%-12s %s\n", s.name, s.about)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := os.MkdirAll(*logs, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, "suite:", err)
		os.Exit(1)
	}
	os.Exit(runAll(ctx, chosen(flag.Args()), *logs))
}

func cacheDir() string {
	if d := os.Getenv("VMDK_CSI_CACHE"); d != "" {
		return d
	}
	return "/var/cache/vmdk-csi"
}

func chosen(names []string) []suite {
	all := suites()
	if len(names) == 0 {
		return all
	}
	var out []suite
	for _, n := range names {
		i := slices.IndexFunc(all, func(s suite) bool { return s.name == n })
		if i < 0 {
			fmt.Fprintf(os.Stderr, "suite: there is no suite %q; suite -list names them\n", n)
			os.Exit(2)
		}
		out = append(out, all[i])
	}
	return out
}

func runAll(ctx context.Context, todo []suite, logs string) int {
	var sum result
	began := time.Now()
	for i, s := range todo {
		if ctx.Err() != nil {
			break
		}
		fmt.Printf("== %d/%d %s: %s\n", i+1, len(todo), s.name, s.about)
		start := time.Now()
		before := observe()
		r := s.run(ctx, filepath.Join(logs, s.name+".log"))
		if leaked := before.leaked(ctx); len(leaked) > 0 {
			r.failed++
			r.failures = append(r.failures, failure{s.name + "/leaks", leaked})
		} else {
			r.passed++
		}
		r.report(os.Stdout)
		fmt.Printf("-- %s: %d passed, %d failed, %d skipped in %s\n", s.name, r.passed, r.failed, len(r.skips),
			time.Since(start).Round(time.Second))
		sum.add(r)
	}
	if ctx.Err() != nil {
		fmt.Println("interrupted")
		sum.failed++
	}
	fmt.Printf("\nAll suites took %s; logs are in %s\n", time.Since(began).Round(time.Second), logs)
	for _, f := range sum.failures {
		fmt.Println("failed:", f.name)
	}
	for _, k := range sum.skips {
		fmt.Printf("skipped: %s: %s\n", k.name, k.reason)
	}
	fmt.Printf("%d passed, %d failed, %d skipped\n", sum.passed, sum.failed, len(sum.skips))
	if sum.failed > 0 || sum.passed == 0 {
		return 1
	}
	return 0
}
