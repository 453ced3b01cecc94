package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
)

func main() {
	list := flag.Bool("list", false, "list the suites and end")
	logs := flag.String("logs", filepath.Join(cacheDir(), "logs"), "directory for each suite's whole output")
	clusterDo := flag.String("cluster", "", "bring the suites' kind cluster \"up\" or \"down\" and end (\"wipe\": down, and its nodes' files)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch {
	case *list:
		printSuites(os.Stdout)
	case *clusterDo != "":
		if err := clusterCommand(ctx, *clusterDo); err != nil {
			fmt.Fprintln(os.Stderr, "suite:", err)
			os.Exit(1)
		}
	default:
		if err := os.MkdirAll(*logs, 0o755); err != nil {
			fmt.Fprintln(os.Stderr, "suite:", err)
			os.Exit(1)
		}
		todo, err := chosen(suites(), flag.Args())
		if err != nil {
			fmt.Fprintln(os.Stderr, "suite:", err)
			os.Exit(2)
		}
		r := &runner{logs: *logs, out: os.Stdout, cluster: newKind(filepath.Join(*logs, "cluster.log"))}
		os.Exit(r.runAll(ctx, stages(todo)))
	}
}

func printSuites(w io.Writer) {
	for _, s := range suites() {
		only := ""
		if s.extra {
			only = " (only when named)"
		}
		fmt.Fprintf(w, "%-12s %s%s\n", s.name, s.about, only)
	}
}

func cacheDir() string {
	if d := os.Getenv("VMDK_CSI_CACHE"); d != "" {
		return d
	}
	return "/var/cache/vmdk-csi"
}

func chosen(all []suite, names []string) ([]suite, error) {
	if len(names) == 0 {
		return slices.DeleteFunc(all, func(s suite) bool { return s.extra }), nil
	}
	var out []suite
	for _, n := range names {
		i := slices.IndexFunc(all, func(s suite) bool { return s.name == n })
		if i < 0 {
			return nil, fmt.Errorf("there is no suite %q; suite -list names them", n)
		}
		out = append(out, all[i])
	}
	return out, nil
}
