package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vmdk-csi/vmdk-csi/pkg/export"
	"github.com/vmdk-csi/vmdk-csi/pkg/export/fuse"
	"github.com/vmdk-csi/vmdk-csi/pkg/worker"
)

// Bench is one run.
type bench struct {
	dir   string // everything is made below it
	quick bool
	seed  uint64
}

// Section measures one thing.
type section struct {
	name string
	run  func(context.Context, *bench) (part, error)
}

var sections = []section{
	{"pause", measurePause},
	{"restore", measureRestore},
	{"merge", measureMerge},
	{"foreground", measureForeground},
	{"convert", measureConvert},
	{"nbd", measureNBD},
	{"san", measureSAN},
	{"engine", measureEngine},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if code, ok := asOther(ctx); ok {
		os.Exit(code)
	}
	var err error
	if len(os.Args) == 3 && os.Args[1] == "disk" { // a worker of the section pause
		err = worker.Main(ctx, worker.Params{
			Files:     worker.Inherited(),
			NewServer: func(dev *os.File, log *slog.Logger) export.Server { return fuse.NewServer(dev, fuse.Options{Log: log}) },
			Log:       slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
		})
	} else {
		err = run(ctx, os.Stdout, os.Args[1:])
	}
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// NeedSpace is what the largest section takes at its fullest.
const needSpace = 12 << 30

func run(ctx context.Context, out io.Writer, args []string) (err error) {
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	var b bench
	only := flags.String("only", "", "sections, separated by commas: "+sectionNames())
	docs := flags.String("docs", "", "write the results into this page as well")
	parent := flags.String("dir", "/var/tmp", "make the disks below this directory; its file system is what is measured")
	flags.BoolVar(&b.quick, "quick", false, "fewer repetitions and less data: for trying the program, not for numbers")
	flags.Uint64Var(&b.seed, "seed", 1, "where the load writes")
	if err := flags.Parse(args); err != nil {
		return err
	}
	chosen, err := choose(*only)
	if err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(*parent, "vmdk-csi-bench-"); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	var fs unix.Statfs_t
	if err := unix.Statfs(b.dir, &fs); err != nil {
		return err
	}
	if free := int64(fs.Bavail) * fs.Bsize; free < needSpace && !b.quick {
		return fmt.Errorf("%s has %d GiB free, %d GiB are needed: free some, or choose another -dir", *parent, free>>30, int64(needSpace)>>30)
	}
	where, err := machine(b.dir)
	if err != nil {
		return err
	}
	var parts []part
	for _, s := range chosen {
		fmt.Fprintf(os.Stderr, "==> %s\n", s.name)
		begin := time.Now()
		p, err := s.run(ctx, &b)
		if err != nil {
			return fmt.Errorf("section %s: %w", s.name, err)
		}
		fmt.Fprintf(os.Stderr, "    %.0f s\n", time.Since(begin).Seconds())
		parts = append(parts, p)
	}
	if err := writeText(out, parts); err != nil {
		return err
	}
	fmt.Fprintf(out, "\n%s.\n", where)
	if *docs == "" {
		return nil
	}
	var text bytes.Buffer
	fmt.Fprintf(&text, "Taken on %s: %s.\n\n", time.Now().UTC().Format(time.DateOnly), where)
	writeMarkdown(&text, parts)
	return updatePage(*docs, text.String())
}

func sectionNames() string {
	var names []string
	for _, s := range sections {
		names = append(names, s.name)
	}
	return strings.Join(names, ",")
}

func choose(only string) ([]section, error) {
	if only == "" {
		return sections, nil
	}
	var chosen []section
	for _, name := range strings.Split(only, ",") {
		i := slices.IndexFunc(sections, func(s section) bool { return s.name == name })
		if i < 0 {
			return nil, fmt.Errorf("no section %q; there are %s", name, sectionNames())
		}
		chosen = append(chosen, sections[i])
	}
	return chosen, nil
}
